"""What an encoder says of an image: a law of its latent.

A posterior is a pytree whose leaves have the batch as their first axis. It has `mean` [batch, n],
which embeds the image, and `sample(key)` -> [batch, n].

Example:
  >>> posterior = gaussian(jnp.zeros((5, 16)))
  >>> posterior.mean.shape, posterior.sample(jax.random.key(0)).shape
  ((5, 8), (5, 8))
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array


class Posterior(Protocol):
    """What methods, training and evaluation ask of a posterior."""

    @property
    def mean(self) -> Array:
        """Where the image is embedded, [batch, n]."""

    def sample(self, key: Array) -> Array:
        """A latent of each image, [batch, n]."""


class Gaussian(NamedTuple):
    """N(μ, σ²) in each coordinate: μ and log σ², [batch, n] each."""

    mean: Array
    log_variance: Array

    @property
    def std(self) -> Array:
        """σ, [batch, n]."""
        return jnp.exp(0.5 * self.log_variance)

    def sample(self, key: Array) -> Array:
        """μ + σ ε, reparameterised, [batch, n] (Kingma and Welling, arXiv 1312.6114)."""
        noise = jax.random.normal(key, self.mean.shape, jnp.float32)
        return self.mean + self.std * noise


class Point(NamedTuple):
    """A point: the latent itself, [batch, n]."""

    mean: Array

    def sample(self, key: Array) -> Array:
        """The point, whatever the key, [batch, n]."""
        return self.mean


def gaussian(outputs: Array, **_) -> Gaussian:
    """The Gaussian of 2n outputs of an encoder, [batch, 2n]: μ first, then log σ²."""
    return Gaussian(*jnp.split(outputs, 2, axis=-1))


def point(outputs: Array, **_) -> Point:
    """The point that n outputs of an encoder are, [batch, n]."""
    return Point(outputs)
