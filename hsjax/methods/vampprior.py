"""VampPrior (Tomczak and Welling, 2018, https://arxiv.org/abs/1705.07120).

    p(z) = 1/K Σ_k q(z|u_k)

The prior is the mean of the posteriors of K pseudo-inputs u_k, images that are learned with the
networks. They begin as training images and are encoded with the running statistics of BatchNorm.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from hsjax import posteriors
from hsjax.methods.mixture import Hyper, Mixture, kld, mixture


def variables(key: Array, n: int, hyper: Hyper, images: Array) -> dict:
    """Pseudo-inputs: training images in random order, repeated only if there are too few."""
    order = jax.random.permutation(key, len(images))
    return {"pseudo_inputs": images[order[jnp.arange(hyper.components) % len(images)]]}


def mixture_of(variables: dict, encode) -> Mixture:
    """The prior: the posteriors of the pseudo-inputs, whose pixels are clipped to [0, 1].

    The gradient ignores the clipping, or a pixel once outside would stay there.
    """
    u = variables["pseudo_inputs"]
    found = encode(u + lax.stop_gradient(jnp.clip(u, 0.0, 1.0) - u))
    log_weights = jnp.full(len(u), -jnp.log(len(u)), jnp.float32)
    return Mixture(log_weights, found.mean, found.log_variance)


def regulariser(
    numbers: Hyper, posterior: posteriors.Gaussian, z, *, variables, encode, **_
) -> dict:
    """The KLD from the mixture by one sample, as in `hsjax.methods.mixture.kld`."""
    return kld(mixture_of(variables, encode), posterior, z)


def prior(key: Array, count: int, n: int, *, variables, encode, **_) -> Array:
    """New latents from the mixture, [count, n]: no fit is needed."""
    return mixture_of(variables, encode).sample(key, count)


vampprior = mixture._replace(regulariser=regulariser, prior=prior, variables=variables)
