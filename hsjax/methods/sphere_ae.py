"""The spherical autoencoder (Zhao et al., 2019, https://arxiv.org/abs/1912.10233).

It has no regulariser: each code is centred (less the mean of its coordinates) and normalised, here
to √n, in the paper to 1. `own` does the same to samples of N(0, I).
"""

import jax.numpy as jnp
from jax import Array

from hsjax import coordinates, posteriors
from hsjax.methods.autoencoder import hyper, regulariser
from hsjax.methods.base import Method, normal, outputs_of_point


def centre(z: Array) -> Array:
    """Codes [..., n] less the mean of their coordinates, on the sphere of radius √n."""
    return coordinates.project(z - jnp.mean(z, axis=-1, keepdims=True))


def posterior(outputs: Array, **_) -> posteriors.Point:
    """The centred and normalised code, [batch, n]."""
    return posteriors.Point(centre(outputs))


def prior(key: Array, count: int, n: int, **_) -> Array:
    """Centred and normalised samples of N(0, I), [count, n]."""
    return centre(normal(key, count, n))


sphere_ae = Method(
    head=outputs_of_point,
    hyper=hyper,
    posterior=posterior,
    regulariser=regulariser,
    prior=prior,
)
