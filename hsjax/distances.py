"""Distances between samples of latents, by optimal transport on lines or circles, or by kernels.

Samples are [count, n] floating-point arrays. Every distance is one scalar, squared (no root is
taken), and differentiable in both samples, even where points are equal, zero or opposite.

Example:
  >>> x, y = jax.random.normal(jax.random.key(0), (2, 100, 16))
  >>> lines, circles = directions(jax.random.key(1), 50, 16), planes(jax.random.key(1), 50, 16)
  >>> sliced_wasserstein(x, y, lines).shape, spherical_sliced_wasserstein(x, y, circles).shape
  ((), ())
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from hsjax.coordinates import project


def directions(key: Array, count: int, n: int) -> Array:
    """Uniform random directions for `sliced_wasserstein`: unit vectors, float32 [count, n]."""
    return project(jax.random.normal(key, (count, n), jnp.float32), 1.0)


def planes(key: Array, count: int, n: int) -> Array:
    """Random planes for the spherical distances: orthonormal pairs, float32 [count, 2, n]."""
    first, second = jax.random.normal(key, (2, count, n), jnp.float32)
    first = project(first, 1.0)
    second -= jnp.sum(first * second, axis=-1, keepdims=True) * first
    return jnp.stack([first, project(second, 1.0)], axis=1)


def sliced_wasserstein(x: Array, y: Array, directions: Array) -> Array:
    """The mean of W_2² between projections to lines, in squared units of x.

    Kolouri et al., 2018 (https://arxiv.org/abs/1804.01947): points of both are sorted and paired.

    Args:
      x: [count, n].
      y: [count, n], as many points.
      directions: [lines, n], unit vectors, from `directions` for example.

    Raises:
      ValueError: shapes that differ.
    """
    _check_alike(x, y)
    gap = jnp.sort(_dot(directions, x), axis=-1) - jnp.sort(_dot(directions, y), axis=-1)
    return jnp.mean(gap**2)


def spherical_sliced_wasserstein_uniform(x: Array, planes: Array) -> Array:
    """Mean W_2² between x's projections to circles and the uniform distribution, 0 to 1/12.

    A circle has length 1. Only the directions of x matter, not the lengths. Bonet et al., 2023
    (https://arxiv.org/abs/2206.08780), proposition 1, written without its cancelling terms:
    with sorted t_i in [0, 1), it is Var(t_i - (i - 1/2)/count) + 1/(12 count²). So it is never 0
    for finitely many points; random points have 1/(12 count) on average.

    Args:
      x: [count, n], n >= 2.
      planes: [planes, 2, n], orthonormal pairs, from `planes` for example.
    """
    t = jnp.sort(_on_circles(x, planes), axis=-1)
    count = t.shape[-1]
    middles = (jnp.arange(count, dtype=t.dtype) + 0.5) / count
    return jnp.mean(jnp.var(t - middles, axis=-1)) + 1.0 / (12.0 * count**2)


def spherical_sliced_wasserstein(x: Array, y: Array, planes: Array) -> Array:
    """The mean of W_2² between projections to circles of length 1, from 0 to 1/4.

    Only the directions of x and y matter. Bonet et al., 2023 (https://arxiv.org/abs/2206.08780),
    section 3. The best transport between sorted points of a circle is one of their cyclic shifts,
    over which the cost is convex (Delon et al., 2010): a bisection finds it.

    Args:
      x: [count, n], n >= 2.
      y: [count, n], as many points.
      planes: [planes, 2, n], orthonormal pairs, from `planes` for example.

    Raises:
      ValueError: shapes that differ.
    """
    _check_alike(x, y)
    u, v = (jnp.sort(_on_circles(points, planes), axis=-1) for points in (x, y))
    count = u.shape[-1]
    around = jnp.concatenate([v - 1.0, v, v + 1.0], axis=-1)
    indices = jnp.arange(count, dtype=jnp.int32)[None]

    def gaps(shift):
        return u - jnp.take_along_axis(around, indices + shift, axis=-1)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        costs = (
            jnp.mean(gaps(shift) ** 2, axis=-1, keepdims=True) for shift in (middle, middle + 1)
        )
        falls = jnp.greater(*costs)
        return jnp.where(falls, middle + 1, low), jnp.where(falls, high, middle)

    low = jnp.zeros((len(u), 1), jnp.int32)
    bounds = low, low + 2 * count
    shift, _ = lax.fori_loop(0, math.ceil(math.log2(2 * count + 1)), halve, bounds)
    return jnp.mean(gaps(shift) ** 2)


def maximum_mean_discrepancy(
    x: Array,
    y: Array,
    *,
    kernel: str = "imq",
    scales: Sequence[Array | float] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
) -> Array:
    """Unbiased estimate of MMD², summed over the kernel's scales; it may be negative.

    The kernel of two points at a distance d is C / (C + d²) ("imq") or exp(-d² / C) ("rbf"), with
    C = 2 n scale. Tolstikhin et al., 2018 (https://arxiv.org/abs/1711.01558), algorithm 2 and
    section 4; the default scales are those of its code, for unit variance in each coordinate.

    Args:
      x: [count, n], at least 2 points.
      y: [m, n], at least 2 points.
      kernel: "imq" or "rbf".
      scales: relative to 2n, the mean squared distance of two points of N(0, I).

    Raises:
      ValueError: fewer than 2 points, or another kernel.
    """
    if kernel not in ("imq", "rbf"):
        raise ValueError(f"kernel must be imq or rbf: {kernel!r}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"x and y need at least 2 points each, got {len(x)} and {len(y)}")
    centre = lax.stop_gradient(jnp.mean(y, axis=0, keepdims=True))  # so that few digits cancel

    def similarity(a, b):
        squares = jnp.sum(a * a, axis=-1)[:, None] + jnp.sum(b * b, axis=-1)[None]
        squares = jnp.maximum(squares - 2.0 * _dot(a, b), 0.0)
        widths = [2.0 * a.shape[-1] * scale for scale in scales]
        if kernel == "imq":
            return sum(width / (width + squares) for width in widths)
        return sum(jnp.exp(-squares / width) for width in widths)

    def within(a):
        others = 1.0 - jnp.eye(len(a), dtype=a.dtype)
        return jnp.sum(similarity(a, a) * others) / (len(a) * (len(a) - 1))

    x, y = x - centre, y - centre
    return within(x) + within(y) - 2.0 * jnp.mean(similarity(x, y))


def _check_alike(x: Array, y: Array) -> None:
    if x.shape != y.shape:
        raise ValueError(f"x and y need the same shape, got {x.shape} and {y.shape}")


def _dot(a: Array, b: Array) -> Array:
    """a bᵀ in full precision, which is not the default on accelerators: [len(a), len(b)]."""
    return jnp.matmul(a, b.T, precision="highest")


def _on_circles(x: Array, planes: Array) -> Array:
    """Where x [count, n] falls on the circle of each plane, in [0, 1]: [planes, count]."""
    first, second = (_dot(axis, project(x, 1.0)) for axis in planes.swapaxes(0, 1))
    usable = first**2 + second**2 > 1e-24  # else the point has no angle, and its derivative is 0
    first, second = jnp.where(usable, first, 1.0), jnp.where(usable, second, 0.0)
    return jnp.arctan2(second, first) / (2.0 * jnp.pi) + 0.5
