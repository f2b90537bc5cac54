"""A normalising flow of the latents: RealNVP (Dinh et al., 2017, https://arxiv.org/abs/1605.08803).

Eight affine couplings of networks with two hidden layers of 256, on permuted coordinates. The
latents are whitened first and the couplings begin as identities, so the flow begins as the Gaussian
of the latents' mean and covariance.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from hsjax.coordinates import widened
from hsjax.samplers import networks
from hsjax.samplers.base import Sampler, float32

COUPLINGS, WIDTH = 8, 256


def initial(key: Array, n: int) -> dict:
    """Initial couplings: identities."""
    half = n // 2

    def coupling(key):
        keys = jax.random.split(key)
        head = networks.dense(keys[1], WIDTH, 2 * (n - half), 0.0)
        return {"layers": networks.mlp(keys[0], half, WIDTH, 2), "head": head}

    return {str(i): coupling(key) for i, key in enumerate(jax.random.split(key, COUPLINGS))}


def _couple(coupling: dict, kept: Array) -> tuple[Array, Array]:
    """Log scales within ±2, and shifts, of the other coordinates."""
    found = networks.apply(coupling["head"], networks.hidden(coupling["layers"], kept))
    log_scale, shift = jnp.split(found, 2, axis=-1)
    return 2.0 * jnp.tanh(0.5 * log_scale), shift


def to_normal(couplings: dict, constants: dict, z: Array) -> tuple[Array, Array]:
    """z [count, n] -> x, N(0, I) if z follows the flow, and log abs det(dx/dz) [count]."""
    x = (z - constants["mean"]) @ constants["whiten"]
    log_jacobian = jnp.full(len(z), constants["log_jacobian"])
    half = z.shape[1] // 2
    for i in range(len(couplings)):
        x = x[:, constants["orders"][i]]
        log_scale, shift = _couple(couplings[str(i)], x[:, :half])
        moved = (x[:, half:] - shift) * jnp.exp(-log_scale)
        x = jnp.concatenate([x[:, :half], moved], axis=1)
        log_jacobian = log_jacobian - jnp.sum(log_scale, axis=1)
    return x, log_jacobian


def _log_prob(couplings: dict, constants: dict, z: Array) -> Array:
    x, log_jacobian = to_normal(couplings, constants, z)
    normal = -0.5 * jnp.sum(x**2, axis=1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    return normal + log_jacobian


def loss(parameters: dict, constants: dict, posterior, key: Array) -> Array:
    """The negative log density of a sample of each posterior."""
    return -jnp.mean(_log_prob(parameters, constants, posterior.sample(key)))


def build(job: networks.Job) -> dict:
    """Train the flow.

    Returns:
      Arrays by name; under "report" the log density of held-out latents, in nats a latent, and for
      comparison that of a Gaussian.
    """
    posterior, keys = job.posterior, job.keys
    z = networks.draws(posterior, keys[0])
    n = z.shape[1]
    values, vectors = np.linalg.eigh(np.cov(z, rowvar=False))
    deviations = np.sqrt(np.maximum(values, 1e-6 * (values.max() or 1.0)))
    orders = [jax.random.permutation(k, n) for k in jax.random.split(keys[1], COUPLINGS)]
    names = "mean", "whiten", "unwhiten", "log_jacobian"
    numbers = z.mean(axis=0), vectors / deviations, (vectors * deviations).T
    constants = dict(zip(names, float32(*numbers, -np.log(deviations).sum()), strict=True))
    constants["orders"] = jnp.stack(orders)
    start, parts = initial(keys[2], n), networks.split(posterior, keys[3])
    parameters, found = job.train(loss, start, constants, parts, keys[4])
    report = {
        "held_out_nats": -found["held_out"],
        "step": found["step"],
        **networks.gaussian_nats(parts, keys[4]),
    }
    return {"couplings": parameters, "constants": constants, "report": report}


@networks.lenient
def sample(parameters: dict, key: Array, count: int) -> Array:
    """float32 [count, n]: N(0, I), sent back through the couplings."""
    couplings, constants = parameters["couplings"], parameters["constants"]
    x = jax.random.normal(key, (count, constants["mean"].size), jnp.float32)
    half = x.shape[1] // 2
    for i in reversed(range(len(couplings))):
        log_scale, shift = _couple(couplings[str(i)], x[:, :half])
        moved = x[:, half:] * jnp.exp(log_scale) + shift
        x = jnp.concatenate([x[:, :half], moved], axis=1)
        x = x[:, jnp.argsort(constants["orders"][i])]
    return x @ constants["unwhiten"] + constants["mean"]


@networks.lenient
def log_prob(parameters: dict, z: ArrayLike) -> Array:
    """The log density of z [count, n], floating-point, per volume of R^n: [count].

    Raises:
      TypeError: z is not floating-point.
    """
    return _log_prob(parameters["couplings"], parameters["constants"], widened(z, "z"))


fit = networks.fit_of("flow", build)

flow = Sampler(fit, sample, log_prob, learned="flow")
"""A RealNVP fitted to the latents by maximum likelihood."""
