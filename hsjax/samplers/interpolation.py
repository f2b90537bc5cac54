"""Interpolation between two latents."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from hsjax.coordinates import project, radius, widened


def slerp(start: ArrayLike, end: ArrayLike, fractions: ArrayLike) -> Array:
    """Spherical linear interpolation: the great circle for the direction, a line for the radius.

    Opposite directions have no unique great circle: the path then goes straight through 0. A zero
    vector has no direction: the points between have the other vector's.

    Args:
      start: [n] floating-point, n >= 2.
      end: [n] floating-point.
      fractions: [count] floating-point, 0 at start and 1 at end.

    Returns:
      [count, n], float32 or wider.

    Raises:
      TypeError: an argument that isn't floating-point.
      ValueError: other shapes.

    Example:
      >>> import numpy as np
      >>> print(np.asarray(slerp([1.0, 0.0], [0.0, 3.0], [0.0, 0.5, 1.0])).round(2))
      [[1.   0.  ]
       [1.41 1.41]
       [0.   3.  ]]
    """
    start, end = widened(start, "start"), widened(end, "end")
    fractions = widened(fractions, "fractions")
    if start.shape != end.shape or start.ndim != 1 or fractions.ndim != 1:
        raise ValueError(
            "start and end must be [n], and fractions [count], "
            f"got {start.shape}, {end.shape} and {fractions.shape}"
        )
    lengths = radius(start), radius(end)
    a, b = project(start, 1.0), project(end, 1.0)
    a, b = jnp.where(lengths[0] == 0, b, a), jnp.where(lengths[1] == 0, a, b)
    # Angles are measured from the middle, so that nothing cancels: the ends are at -h and h.
    between, middle = b - a, a + b
    h = jnp.arctan2(radius(between), radius(middle))
    # Makes `middle` orthogonal to `between`, even if a + b is little more than a rounding error.
    lean = jnp.sum(middle * between) / jnp.maximum(jnp.sum(between**2), 1.0)
    middle = project(middle - lean * between, 1.0)
    part = 2.0 * fractions - 1.0
    near = h < 1e-3  # sin(part h) / sin(h) by its series
    ratio = jnp.where(
        near,
        part * (1.0 + (1.0 - part**2) * h**2 / 6.0),
        jnp.sin(part * h) / jnp.where(near, 1.0, jnp.sin(h)),
    )
    direction = jnp.cos(part * h)[:, None] * middle[None] + 0.5 * ratio[:, None] * between[None]
    return ((1.0 - fractions) * lengths[0] + fractions * lengths[1])[:, None] * direction
