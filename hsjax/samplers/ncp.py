"""NCP, the noise contrastive prior (Aneja et al., 2021, https://arxiv.org/abs/2010.02917).

    p(z) ∝ r(z) N(z; μ, Σ),  r = D / (1 - D)

D is a classifier that separates samples of the posteriors from samples of the base N(μ, Σ), a
Gaussian fitted to the latents. The paper's base is the VAE's prior, but in many dimensions N(0, I)
is so easy to separate that a single proposal gets all of the weight. Samples are drawn by
importance resampling: of 100 proposals one is taken, with a probability ∝ r.
"""

import jax
import jax.numpy as jnp
from jax import Array

from hsjax.samplers import mixture, networks
from hsjax.samplers.base import Sampler
from hsjax.samplers.gaussian import gaussian

WIDTH = 512
PROPOSALS = 100


def initial(key: Array, n: int) -> dict:
    """The initial classifier, for which D = 1/2 everywhere."""
    keys = jax.random.split(key)
    head = networks.dense(keys[1], WIDTH, 1, 0.0)
    return {"layers": networks.mlp(keys[0], n, WIDTH), "head": head}


def log_ratio(parameters: dict, constants: dict, z: Array) -> Array:
    """log r of z [..., n], the classifier's logit: [...]."""
    z = (z - constants["mean"]) / constants["deviation"]
    return networks.apply(parameters["head"], networks.hidden(parameters["layers"], z))[..., 0]


def loss(parameters: dict, constants: dict, posterior, key: Array) -> Array:
    """The cross-entropy of the classifier, in nats: log 2 if it does no better than chance."""
    q_key, base_key = jax.random.split(key)
    z = posterior.sample(q_key)
    base = mixture.sample(mixture.Mixture(**constants["base"]), base_key, len(z))
    real, false = (log_ratio(parameters, constants, x) for x in (z, base))
    return 0.5 * jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(false))


def build(job: networks.Job) -> dict:
    """Train the classifier.

    Returns:
      Arrays by name; under "report" the cross-entropy of held-out latents, in nats, and the mean
      effective number among 100 proposals: (Σ r)² / Σ r².
    """
    posterior, keys = job.posterior, job.keys
    z = networks.draws(posterior, keys[0])
    constants = {"base": gaussian.fit(z)._asdict(), **networks.standard(z)}
    start, parts = initial(keys[1], z.shape[1]), networks.split(posterior, keys[2])
    parameters, found = job.train(loss, start, constants, parts, keys[3])
    fitted = {"classifier": parameters, "constants": constants}
    weights = jax.nn.softmax(_proposals(fitted, keys[4], 200)[1])
    report = {
        "held_out_cross_entropy": found["held_out"],
        "effective_proposals": float(jnp.mean(1.0 / jnp.sum(weights**2, axis=1))),
        "step": found["step"],
    }
    return fitted | {"report": report}


def _proposals(parameters: dict, key: Array, count: int) -> tuple[Array, Array]:
    """Draws of the base [count, PROPOSALS, n], and their log r."""
    constants = parameters["constants"]
    z = mixture.sample(mixture.Mixture(**constants["base"]), key, count * PROPOSALS)
    z = z.reshape(count, PROPOSALS, -1)
    return z, log_ratio(parameters["classifier"], constants, z)


@networks.lenient
def sample(parameters: dict, key: Array, count: int) -> Array:
    """float32 [count, n]; each is chosen among its own proposals."""

    def some(key):
        proposal_key, choice_key = jax.random.split(key)
        z, logits = _proposals(parameters, proposal_key, 100)
        return z[jnp.arange(100), jax.random.categorical(choice_key, logits)]

    z = jax.lax.map(some, jax.random.split(key, -(-count // 100)))
    return z.reshape(-1, z.shape[-1])[:count]


fit = networks.fit_of("ncp", build)

ncp = Sampler(fit, sample, learned="ncp")
"""A fitted Gaussian, reweighted by a classifier of latents against its samples."""
