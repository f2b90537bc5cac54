"""Mean and variance, over a batch, of its vectors' hyperspherical coordinates."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from hsjax.coordinates import widened


def coordinate_moments(x: ArrayLike, eps: ArrayLike) -> tuple[Array, Array]:
    """Mean and unbiased variance over the batch of every cosine and of the radius.

    With S_k = Σ_{j>=k} x_j², i_k = (S_k + eps)^{-1/2}, c_k = x_k i_k and r = √S_1, the columns are
    c_1 ... c_{n-1}, r. The gradient has a closed form: with the cotangents ḡ_m and ḡ_v of mean m
    and variance v, an entry c of a column has the cotangent g = ḡ_m/B + 2 ḡ_v/(B-1) (c - m), and::

        dx_i = g_i i_i + x_i (g_r / r - Σ_{k<=i} g_k c_k i_k²),    g_n := 0
        deps = -½ Σ_k g_k c_k i_k², summed over the rows as well

    So it needs one running sum in each direction, and stores no array of x's size except x. Forward
    mode and higher derivatives work as well. The variance is computed about the mean: E[c²] - m²
    would lose all digits for strongly compressed latents.

    Args:
      x: [..., B, n], B >= 2, n >= 2, with finite squares (entries below 1e19 in float32).
      eps: positive, in squared units of x.

    Returns:
      mean [..., n] and variance [..., n].

    Raises:
      ValueError: B < 2 or n < 2.

    Example:
      >>> mean, variance = coordinate_moments(jnp.array([[3.0, 4.0], [-3.0, 4.0]]), 1e-12)
      >>> mean  # of the cosines 0.6 and -0.6, and of the radius
      Array([0., 5.], dtype=float32)
      >>> [f"{v:.2f}" for v in variance]
      ['0.72', '0.00']
    """
    x = widened(x, "x")
    if x.ndim < 2 or min(x.shape[-2:]) < 2:
        raise ValueError(
            f"batch statistics need at least 2 rows of 2 coordinates, got shape {x.shape}"
        )
    return _moments(x, jnp.asarray(eps, x.dtype))


@jax.custom_jvp
def _moments(x, eps):
    columns, _ = _columns(x, eps)
    return jnp.mean(columns, axis=-2), jnp.var(columns, axis=-2, ddof=1)


@_moments.defjvp
def _moments_jvp(primals, tangents):
    mean, variance = _moments(*primals)
    return (mean, variance), _along(*primals, mean, *tangents)


@partial(jax.checkpoint, prevent_cse=False)  # its transpose stores no array of x's size except x
def _along(x, eps, mean, dx, deps):
    """The derivative of both statistics along (dx, deps), a linear function of these two."""
    columns, inverse_tails = _columns(x, eps)
    radius = columns[..., -1:]  # columns holds r, not c_n, in its last place
    inverse_radius = jnp.where(radius == 0, 0.0, 1.0 / jnp.where(radius == 0, 1.0, radius))
    halves = x * dx  # half the change of the squares
    # Written as a transpose, so that the backward pass uses the sums themselves, which are faster.
    (sums,) = jax.linear_transpose(partial(_running_sums, reverse=False), x)(halves)
    d_cosines = (dx - columns * inverse_tails * (sums + 0.5 * deps)) * inverse_tails
    d_radius = inverse_radius * jnp.sum(halves, axis=-1, keepdims=True)

    def over_batch(cosines, radius):
        return jnp.append(jnp.sum(cosines, -2)[..., :-1], jnp.sum(radius, -2), axis=-1)

    count, offsets = x.shape[-2], columns - mean[..., None, :]
    d_mean = over_batch(d_cosines, d_radius) / count
    d_variance = over_batch(offsets * d_cosines, offsets[..., -1:] * d_radius) * (2 / (count - 1))
    return d_mean, d_variance


def _columns(x, eps):
    """The n - 1 cosines and, as the n-th column, the radius; and the inverse tails i_k."""
    sums = _running_sums(x * x, reverse=True)
    inverse_tails = lax.rsqrt(sums + eps)
    return _last_column(x * inverse_tails, jnp.sqrt(sums[..., :1])), inverse_tails


def _running_sums(x, *, reverse):
    """Sums of x_1 ... x_k or, reversed, of x_k ... x_n, over the last axis."""
    return lax.platform_dependent(
        x,
        cpu=partial(_blockwise_sums, reverse=reverse),  # half the time of a cumsum there
        default=lambda x: lax.cumsum(x, axis=x.ndim - 1, reverse=reverse),
    )


def _blockwise_sums(x, *, reverse, width=32):
    """The same by triangular matrix products in blocks; a block adds the sums of earlier ones."""
    n = x.shape[-1]
    if n > width:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % width)])
        x = x.reshape(*x.shape[:-1], -1, width)
    triangle = jnp.tri(x.shape[-1], dtype=x.dtype)
    sums = jnp.matmul(x, triangle if reverse else triangle.T, precision=lax.Precision.HIGHEST)
    if n <= width:
        return sums
    # Shifted by one block. Subtracting each block's own sum instead would lose small tails' digits.
    carried = _blockwise_sums(sums[..., 0 if reverse else -1], reverse=reverse)
    before = (0, 1) if reverse else (1, 0)
    carried = carried[..., 1:] if reverse else carried[..., :-1]
    carried = jnp.pad(carried, [(0, 0)] * (carried.ndim - 1) + [before])
    return (sums + carried[..., None]).reshape(*sums.shape[:-2], -1)[..., :n]


def _last_column(x, value):
    is_last = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) == x.shape[-1] - 1
    return jnp.where(is_last, value, x)
