"""A second VAE, for the latents (Dai and Wipf, 2019, https://arxiv.org/abs/1903.05789, section 4).

It is trained on samples z of the posteriors q(z|x), each coordinate standardised:

    Σ_j [(z_j - ẑ_j)² / 2γ² + log γ + ½ log 2π] + KLD(q(u|z), N(0, I))

with a latent u of the same dimension and networks whose input also goes to the head. γ² is the mean
squared error of the batch, its optimum (Rybkin et al., 2021, https://arxiv.org/abs/2006.13202); in
the paper gradient descent lowers it from 1 over 800 epochs. There are three hidden layers of 512
units, where the paper has 1024. `two_stage` draws u from N(0, I), `two_stage_gmm` from a mixture
fitted to the u of the latents: LaDDer's idea (Lin and Clark, 2020,
https://arxiv.org/abs/2009.00088) with the networks of Dai and Wipf.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from hsjax import losses, posteriors
from hsjax.samplers import mixture, networks
from hsjax.samplers.base import Sampler

WIDTH = 512


def initial(key: Array, n: int) -> dict:
    """Initial parameters; both heads take the last hidden layer and the input."""
    keys = jax.random.split(key, 4)
    return {
        "encoder": networks.mlp(keys[0], n, WIDTH),
        "encoder_head": networks.dense(keys[1], WIDTH + n, 2 * n, 0.1),
        "decoder": networks.mlp(keys[2], n, WIDTH),
        "decoder_head": networks.dense(keys[3], WIDTH + n, n, 0.1),
    }


def _network(parameters: dict, name: str, x: Array) -> Array:
    seen = jnp.concatenate([networks.hidden(parameters[name], x), x], axis=-1)
    return networks.apply(parameters[f"{name}_head"], seen)


def encode(parameters: dict, z: Array) -> posteriors.Gaussian:
    """The posterior of u for standardised z [count, n]."""
    return posteriors.gaussian(_network(parameters, "encoder", z))


def decode(parameters: dict, u: Array) -> Array:
    """The mean of standardised z [count, n] given u [count, n]."""
    return _network(parameters, "decoder", u)


def bound(parameters: dict, z: Array, key: Array) -> tuple[Array, Array]:
    """The negative evidence bound of standardised z [count, n], in nats a latent, and γ."""
    q = encode(parameters, z)
    variance = jnp.mean((z - decode(parameters, q.sample(key))) ** 2)
    error = 0.5 * z.shape[1] * (1.0 + math.log(2 * math.pi) + jnp.log(variance + 1e-12))
    return error + losses.gaussian_kl(q.mean, q.log_variance), jnp.sqrt(variance)


def loss(parameters: dict, constants: dict, posterior, key: Array) -> Array:
    """`bound` of a sample of each posterior."""
    z_key, u_key = jax.random.split(key)
    z = (posterior.sample(z_key) - constants["mean"]) / constants["deviation"]
    return bound(parameters, z, u_key)[0]


def build(job: networks.Job) -> dict:
    """Train the second VAE, and fit a mixture to samples of u.

    Returns:
      Arrays by name; under "report" the evidence bound of held-out latents, in nats per latent, and
      for comparison their log density under a Gaussian.
    """
    posterior, keys = job.posterior, job.keys
    z = networks.draws(posterior, keys[0])
    constants, parts = networks.standard(z), networks.split(posterior, keys[1])
    start = initial(keys[2], z.shape[1])
    parameters, found = job.train(loss, start, constants, parts, keys[3])
    job.say("fitting two_stage: a mixture to its latents")
    scaled = (jnp.asarray(z, jnp.float32) - constants["mean"]) / constants["deviation"]
    top = mixture.fit(jax.jit(encode)(parameters, scaled).sample(keys[4]))
    constants["gamma"] = jax.jit(bound)(parameters, scaled[:1000], keys[4])[1]
    report = {
        "held_out_nats": -found["held_out"] - float(jnp.sum(jnp.log(constants["deviation"]))),
        "step": found["step"],
        **networks.gaussian_nats(parts, keys[4]),
    }
    return {"vae": parameters, "mixture": top._asdict(), "report": report, **constants}


def _decoded(parameters: dict, u: Array, key: Array) -> Array:
    noise = parameters["gamma"] * jax.random.normal(key, u.shape, jnp.float32)
    return parameters["mean"] + parameters["deviation"] * (decode(parameters["vae"], u) + noise)


@networks.lenient
def sample(parameters: dict, key: Array, count: int) -> Array:
    """float32 [count, n]: u from N(0, I), decoded with its noise."""
    u_key, noise_key = jax.random.split(key)
    u = jax.random.normal(u_key, (count, parameters["mean"].size), jnp.float32)
    return _decoded(parameters, u, noise_key)


@networks.lenient
def sample_mixture(parameters: dict, key: Array, count: int) -> Array:
    """float32 [count, n]: u from the mixture, decoded with its noise."""
    u_key, noise_key = jax.random.split(key)
    u = mixture.sample(mixture.Mixture(**parameters["mixture"]), u_key, count)
    return _decoded(parameters, u, noise_key)


fit = networks.fit_of("two_stage", build)

two_stage = Sampler(fit, sample, learned="two_stage")
"""A second VAE fitted to the latents, sampled from N(0, I)."""

two_stage_gmm = Sampler(fit, sample_mixture, learned="two_stage")
"""The same VAE, sampled from ten Gaussians fitted to its own latents."""
