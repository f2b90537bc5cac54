"""N(0, I), which the standard VAE draws from."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from hsjax.coordinates import widened
from hsjax.samplers.base import Sampler, checked


def fit(means, **_) -> Array:
    """n zeros: the dimension is the only parameter."""
    return jnp.zeros(checked(means).shape[1], jnp.float32)


def sample(zeros: Array, key: Array, count: int) -> Array:
    """Standard normal numbers, float32 [count, n]."""
    return jax.random.normal(key, (count, zeros.size), jnp.float32)


def log_prob(zeros: Array, z: ArrayLike) -> Array:
    """-‖z‖²/2 - n/2 log 2π, per volume of R^n.

    Args:
      zeros: [n], from `fit`.
      z: [count, n] floating-point.

    Returns:
      [count], float32 or wider.

    Raises:
      TypeError: z is not floating-point.

    Example:
      >>> log_prob(jnp.zeros(2), jnp.array([[0.0, 0.0], [3.0, 4.0]])).round(3)
      Array([ -1.838, -14.338], dtype=float32)
    """
    z = widened(z, "z")
    return -0.5 * jnp.sum(z * z, axis=-1) - 0.5 * zeros.size * math.log(2 * math.pi)


prior = Sampler(fit, sample, log_prob)
"""N(0, I), the standard VAE's prior."""
