"""Where new latents come from: each sampler has fit(embeddings) and sample(parameters, key, count).

Embeddings are the encoder's means, [count, n]. `fit` runs once, on the host in float64; `sample` is
pure JAX with an explicit key. A model with `project` rescales every sample to √n when it decodes; a
model without sees the radius drawn here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hsjax import coordinates


class Sampler(NamedTuple):
    """fit: embeddings [count, n] -> parameters; sample: (parameters, key, count) -> [count, n]."""

    fit: Callable
    sample: Callable


class Gaussian(NamedTuple):
    """N(mean, factor factorᵀ), projected to a radius: [n], [n, n], scalar; float32."""

    mean: Array
    factor: Array
    radius: Array


def _fit_dimension(embeddings) -> Array:
    return jnp.zeros(np.shape(embeddings)[-1])


def _sample_prior(zeros: Array, key: Array, count: int) -> Array:
    return jax.random.normal(key, (count, zeros.size))


def _sample_uniform_sphere(zeros: Array, key: Array, count: int) -> Array:
    return coordinates.project(_sample_prior(zeros, key, count))


def _fit_projected_gaussian(embeddings) -> Gaussian:
    embeddings = np.asarray(embeddings, np.float64)
    covariance = np.cov(embeddings, rowvar=False)
    # A root that exists also when there are fewer embeddings than coordinates.
    values, vectors = np.linalg.eigh(covariance)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    radius = np.linalg.norm(embeddings, axis=1).mean()
    return Gaussian(*(jnp.asarray(a, jnp.float32) for a in (embeddings.mean(0), factor, radius)))


def _sample_projected_gaussian(parameters: Gaussian, key: Array, count: int) -> Array:
    noise = jax.random.normal(key, (count, parameters.mean.size))
    z = parameters.mean[None] + jnp.matmul(noise, parameters.factor.T, precision="highest")
    return coordinates.project(z, parameters.radius)


prior = Sampler(_fit_dimension, _sample_prior)
"""N(0, I), the standard VAE's own."""

uniform_sphere = Sampler(_fit_dimension, _sample_uniform_sphere)
"""Uniform on the sphere of radius √n: the prior's limit in high dimension."""

projected_gaussian = Sampler(_fit_projected_gaussian, _sample_projected_gaussian)
"""A Gaussian of the embeddings' mean and covariance, projected to their mean radius.

One reading of the paper's "von Mises-Fisher distribution with the same mean and covariance as the
embeddings" (section 4.4): a von Mises-Fisher law proper has a single concentration.
"""

SAMPLERS = {
    "prior": prior,
    "uniform_sphere": uniform_sphere,
    "projected_gaussian": projected_gaussian,
}
