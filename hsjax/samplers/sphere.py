"""Uniform on the sphere of radius √n."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from hsjax.coordinates import log_area, project, widened
from hsjax.samplers.base import Sampler
from hsjax.samplers.prior import fit
from hsjax.samplers.prior import sample as sample_normal


def sample(zeros: Array, key: Array, count: int) -> Array:
    """Standard normal numbers projected to radius √n, float32 [count, n]."""
    return project(sample_normal(zeros, key, count))


def log_prob(zeros: Array, z: ArrayLike) -> Array:
    """Minus the log of the area of the sphere of radius √n, wherever z [count, n] is: [count].

    Raises:
      TypeError: z is not floating-point.
    """
    z = widened(z, "z")
    return jnp.full(z.shape[:-1], -log_area(zeros.size, zeros.size**0.5), z.dtype)


uniform_sphere = Sampler(fit, sample, log_prob)
"""Uniform on the sphere of radius √n: the prior's limit in high dimension."""
