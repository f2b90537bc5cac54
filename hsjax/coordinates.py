"""Cartesian <-> hyperspherical coordinates over the last axis, in O(n) time and memory.

A vector x of n coordinates has the tails t_k = sqrt(x_k² + ... + x_n²), the radius r = t_1 and
n - 1 angles (paper, appendices A.1 and A.2; k counts from 1)::

    cos φ_k = x_k / t_k,    sin φ_k = t_{k+1} / t_k,    k = 1 ... n-1
    x_k = r (Π_{j<k} sin φ_j) cos φ_k,    x_n = r Π_{j<n} sin φ_j

φ_1 ... φ_{n-2} lie in [0, π]; the last angle keeps the sign of x_n and lies in (-π, π].

Every function takes any leading axes and float16, bfloat16, float32 or float64, computes half
precision in float32 and returns the dtype it was given. Values are accurate to a few units in the
last place over the whole range of normal numbers (a subnormal counts as zero, as on most
accelerators). Derivatives exist to any order and are finite everywhere: where the map is not
differentiable (the zero vector, a pole), the undefined part is set to 0. A tail below 1e-31
(float32) counts as such a point.

A result too large for its dtype is infinite. A vector whose norm exceeds the largest number (3e38
in float32) counts as infinitely long: its cosines and projection are 0, and derivatives may be NaN.
A NaN gives NaN in all that depends on it. An infinity gives the limit if there is one, else NaN.
"""

import math
import numbers

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike


def radius(x: ArrayLike) -> Array:
    """Euclidean norm r = t_1, without overflow or underflow, with gradient 0 at the zero vector.

    Args:
      x: [..., n] floating-point, n >= 2.

    Returns:
      [...] in the units of x.

    Raises:
      TypeError: x is not floating-point.
      ValueError: n < 2.

    Example:
      >>> radius(jnp.array([3.0, 4.0]))
      Array(5., dtype=float32)
    """
    x = _vectors(x, "x")
    return _radius(x)


def cosines(x: ArrayLike, *, eps: ArrayLike = 0.0) -> Array:
    """Cosines of the angles, cos φ_k = x_k / sqrt(t_k² + eps), without any arccos (A.2).

    A zero tail (t_k = 0, eps = 0) leaves the angle undefined; its cosine and gradient are then 0.
    Near a zero tail the gradient grows like 1 / t_k: give a positive eps when training. This is
    also several times faster, since squares are then summed without scaling; coordinates above
    1e19 (float32) count as infinite.

    Args:
      x: [..., n] floating-point, n >= 2.
      eps: added to t_k² under the root, in squared units of x; the authors' code uses 1e-3. A
        value below the smallest normal number counts as 0; a traced value must be above it. From
        1e-25 up (float32), derivatives are finite at a zero tail as well.

    Returns:
      [..., n - 1], each in [-1, 1].

    Raises:
      TypeError: x is not floating-point.
      ValueError: n < 2, or eps a number that is NaN or below 0.

    Example:
      >>> cosines(jnp.array([3.0, 0.0, 4.0]))  # 3/5 and 0/4
      Array([0.6, 0. ], dtype=float32)
    """
    x = _vectors(x, "x")
    if isinstance(eps, numbers.Real):
        if not eps >= 0:
            raise ValueError(f"eps must be >= 0, got {eps}")
        if eps < jnp.finfo(computed_in(x.dtype)).tiny:
            return _cosines(x)
    return _cosines_with_eps(x, eps)


def to_spherical(x: ArrayLike) -> tuple[Array, Array]:
    """Radius and angles of Cartesian vectors (A.1), the angles by atan2 rather than arccos.

    At a zero tail, angles are not unique and come back as 0. Near a pole they keep all digits,
    where arccos of the cosine would lose half of them. A loss needs only `cosines`.

    Args:
      x: [..., n] floating-point, n >= 2.

    Returns:
      radius [...] in the units of x, and angles [..., n - 1] in radians, in [0, π], the last one in
      (-π, π].

    Raises:
      TypeError: x is not floating-point.
      ValueError: n < 2.

    Example:
      >>> radius, angles = to_spherical(jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, -2.0]]))
      >>> radius
      Array([1., 2.], dtype=float32)
      >>> (angles / jnp.pi).round(3)
      Array([[ 0.5,  0. ],
             [ 0.5, -0.5]], dtype=float32)
    """
    x = _vectors(x, "x")
    return _to_spherical(x)


def to_cartesian(radius: ArrayLike, angles: ArrayLike) -> Array:
    """Cartesian vectors from radius and angles (A.1), the inverse of `to_spherical`.

    The products of sines are taken as sums of logarithms: the absolute error stays near 1e-7 r in
    float32 for any n, but a coordinate that is small against r has a larger relative error. Angles
    outside the ranges of `to_spherical` are allowed and give the point they denote.

    Args:
      radius: [...] floating-point.
      angles: [..., n - 1] floating-point, in radians, n >= 2, with the leading axes of radius.

    Returns:
      [..., n] in the units of radius.

    Raises:
      TypeError: radius or angles is not floating-point.
      ValueError: no angle, or leading axes that differ.

    Example:
      >>> to_cartesian(jnp.float32(2.0), jnp.array([jnp.pi / 2, -jnp.pi / 2])).round(3) + 0.0
      Array([ 0.,  0., -2.], dtype=float32)
    """
    return _to_cartesian(*_radius_and_angles(radius, angles))


def project(x: ArrayLike, radius: ArrayLike | None = None) -> Array:
    """Rescale vectors to a sphere, ‖x‖ = √n by default (below equation 8).

    The zero vector has no direction: it stays zero, with gradient 0.

    Args:
      x: [..., n] floating-point, n >= 2.
      radius: of the sphere, a scalar in the units of x; √n if None.

    Returns:
      [..., n].

    Raises:
      TypeError: x is not floating-point.
      ValueError: n < 2.

    Example:
      >>> project(jnp.array([0.0, 3.0, 0.0, 0.0]))
      Array([0., 2., 0., 0.], dtype=float32)
      >>> project(jnp.array([0.0, 3.0, 0.0, 0.0]), 1.0)
      Array([0., 1., 0., 0.], dtype=float32)
    """
    x = _vectors(x, "x")
    return _project(x, x.shape[-1] ** 0.5 if radius is None else radius)


def log_volume(radius: ArrayLike, angles: ArrayLike) -> Array:
    """Log of the volume element `r^{n-1} Π_{k=1}^{n-2} |sin φ_k|^{n-1-k}` (A.3).

    It is the log-determinant of the Jacobian of `to_cartesian`. At a pole or at r = 0 the element
    vanishes; its logarithm then keeps the finite value that it has for a sine (or radius) of
    1e-19 in float32, with gradient 0 below. It does not depend on the last angle.

    Args:
      radius: [...] floating-point.
      angles: [..., n - 1] floating-point, in radians, n >= 2, with the leading axes of radius.

    Returns:
      [...], dimensionless if r is.

    Raises:
      TypeError: radius or angles is not floating-point.
      ValueError: no angle, or leading axes that differ.

    Example:
      >>> angles = jnp.array([jnp.pi / 6, 1.0])  # on an ordinary sphere, r² sin φ_1
      >>> jnp.exp(log_volume(jnp.float32(3.0), angles)).round(3)
      Array(4.5, dtype=float32)
    """
    return _log_volume(*_radius_and_angles(radius, angles))


def log_area(n: int, radius: float = 1.0) -> float:
    """Log of the area of the sphere in R^n, 2 π^{n/2} radius^{n-1} / Γ(n/2).

    It is the entropy of the uniform distribution on it, in nats.

    Example:
      >>> round(math.exp(log_area(3)) / math.pi, 6)
      4.0
    """
    unit = math.log(2) + 0.5 * n * math.log(math.pi) - math.lgamma(0.5 * n)
    return unit + (n - 1) * math.log(radius)


def diagonal_cosines(n: int) -> Array:
    """Cosines of the vector (1, ..., 1): cos φ_k = 1 / sqrt(n - k + 1), k = 1 ... n-1 (4.2).

    They are also the standard deviations of the cosines under the prior N(0, I).

    Args:
      n: number of Cartesian coordinates, >= 2.

    Returns:
      [n - 1] float32.

    Example:
      >>> [f"{cosine:.3f}" for cosine in diagonal_cosines(4)]
      ['0.500', '0.577', '0.707']
    """
    return lax.rsqrt(jnp.arange(n, 1, -1, dtype=jnp.float32))


def computed_in(dtype) -> jnp.dtype:
    """float32 for half precision, else the floating-point dtype itself."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def widened(x: ArrayLike, name: str) -> Array:
    """x in float32 or wider; a TypeError that names the argument if it isn't floating-point."""
    x = _vectors(x, name, at_least=0)
    return x.astype(computed_in(x.dtype))


# ------------------------------------------------------------------ what the functions are made of


def _vectors(x: ArrayLike, name: str, at_least: int = 2) -> Array:
    """x as an array; TypeError or ValueError naming the argument if it holds no such vectors."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array, got {x.dtype}")
    if at_least and (x.ndim == 0 or x.shape[-1] < at_least):
        raise ValueError(
            f"{name} needs at least {at_least} along its last axis, got shape {x.shape}"
        )
    return x


def _radius_and_angles(radius: ArrayLike, angles: ArrayLike) -> tuple[Array, Array]:
    radius, angles = _vectors(radius, "radius", at_least=0), _vectors(angles, "angles", at_least=1)
    if radius.shape != angles.shape[:-1]:
        raise ValueError(
            f"radius has shape {radius.shape}, but angles {angles.shape} need {angles.shape[:-1]}"
        )
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(radius.dtype, angles.dtype)
    return radius.astype(dtype), angles.astype(dtype)


def _in_float32(function):
    """Jit a function, computing half precision in float32 and returning the dtype given."""

    @jax.jit
    def wrapped(x, *args):
        wide = computed_in(x.dtype)
        out = function(x.astype(wide), *(jnp.asarray(a).astype(wide) for a in args))
        return jax.tree.map(lambda y: y.astype(x.dtype), out)

    return wrapped


@_in_float32
def _radius(x):
    return _norm(x)


@_in_float32
def _cosines(x):
    tails = _tails(x)
    return _cosine(x[..., :-1], tails[..., 1:], tails[..., :-1])


@_in_float32
def _cosines_with_eps(x, eps):
    sums = lax.cumsum(x * x, axis=x.ndim - 1, reverse=True) + eps
    return _cosine_by_squares(x[..., :-1], sums[..., 1:], sums[..., :-1])


@_in_float32
def _to_spherical(x):
    tails = _tails(x)
    rest = jnp.concatenate([tails[..., 1:-1], x[..., -1:]], axis=-1)
    return tails[..., 0], _angle(rest, x[..., :-1])


@_in_float32
def _to_cartesian(radius, angles):
    one = jnp.ones_like(angles[..., :1])
    last = jnp.concatenate([jnp.cos(angles), one], axis=-1)
    return radius[..., None] * _sine_products(angles) * last


@_in_float32
def _project(x, radius):
    return radius * _ratio(x, _norm(x)[..., None])


@_in_float32
def _log_volume(radius, angles):
    rest = angles[..., :-1]
    powers = rest.shape[-1] - lax.broadcasted_iota(rest.dtype, rest.shape, rest.ndim - 1)  # n-1-k
    sines = jnp.sum(_log_sine(rest) * powers, axis=-1)
    return angles.shape[-1] * _log(jnp.abs(radius)) + sines


@jax.custom_jvp
def _norm(x):
    """t_1 alone. Dividing x by its largest entry keeps the sum of squares in range."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scaled = _ratio(x, largest)
    return largest[..., 0] * jnp.sqrt(jnp.sum(scaled * scaled, axis=-1))


@_norm.defjvp
def _norm_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    r = _norm(x)
    return r, jnp.sum(_ratio(x, r[..., None]) * dx, axis=-1)


@jax.custom_jvp
def _tails(x):
    """t_k = sqrt(Σ_{j>=k} x_j²), k = 1 ... n, exact over the whole range of normal numbers.

    Squares of numbers above 1e19 or below 1e-19 leave the range of float32, and the tail of a
    compressed row is that small. So there are three running sums (Blue, 1978): of large entries
    scaled down, of ordinary ones, and of small ones scaled up. Powers of two scale exactly.
    """
    scale = jnp.finfo(x.dtype).maxexp
    down, up = 2.0 ** -int(0.59 * scale), 2.0 ** int(0.66 * scale)
    size = jnp.abs(x)
    large, small = size > 2.0 ** int(0.41 * scale), size < 2.0 ** -int(0.35 * scale)
    parts = jnp.stack(
        [
            jnp.where(large, x * down, 0.0),
            jnp.where(large | small, 0.0, x),
            jnp.where(small, x * up, 0.0),
        ]
    )
    large, ordinary, small = jnp.sqrt(lax.cumsum(parts * parts, axis=x.ndim, reverse=True))
    return jnp.hypot(large / down, jnp.hypot(ordinary, small / up))


@_tails.defjvp
def _tails_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    t = _tails(x)
    # t_k² = x_k² + t_{k+1}², so dt_k = cos φ_k dx_k + sin φ_k dt_{k+1}: no square, no overflow.
    following = jnp.concatenate([t[..., 1:], jnp.zeros_like(t[..., :1])], axis=-1)
    return t, _recurrence(_ratio(following, t), _ratio(x, t) * dx, reverse=True)


def _recurrence(a, b, *, reverse=False):
    """y_k = a_k y_{k-1} + b_k along the last axis (y_{k+1} for y_{k-1} if reverse)."""

    def compose(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return lax.associative_scan(compose, (a, b), reverse=reverse, axis=b.ndim - 1)[1]


def _inverse(size):
    """1 / size for derivatives, 0 where size is so small that its products would overflow."""
    info = jnp.finfo(size.dtype)
    usable = size > info.tiny / info.eps
    return jnp.where(usable, 1.0 / jnp.where(usable, size, 1.0), 0.0)


@jax.custom_jvp
def _ratio(a, b):
    """a / b for 0 <= |a| <= b, and 0 where b = 0.

    XLA multiplies by 1 / b. For the largest b this is subnormal, so 0: such b are scaled down.
    """
    scale = jnp.where(b > 2.0 ** (jnp.finfo(b.dtype).maxexp - 28), 2.0**-30, 1.0)
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b * scale) * scale)


@_ratio.defjvp
def _ratio_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    ratio = _ratio(a, b)
    return ratio, (da - ratio * db) * _inverse(b)


@jax.custom_jvp
def _cosine(x, rest, h):
    """x / h of a right triangle with the legs x and rest."""
    return _ratio(x, h)


@_cosine.defjvp
def _cosine_jvp(primals, tangents):
    x, rest, h = primals
    dx, drest, _ = tangents  # h depends on the legs; without 1 - cos², nothing cancels near a pole
    cosine, sine = _cosine(x, rest, h), _cosine(rest, x, h)
    return cosine, sine * (sine * dx - cosine * drest) * _inverse(h)


@jax.custom_jvp
def _cosine_by_squares(x, rest, square):
    """x / sqrt(square), where square = x² + rest."""
    return x * lax.rsqrt(square)


@_cosine_by_squares.defjvp
def _cosine_by_squares_jvp(primals, tangents):
    x, rest, square = primals
    dx, drest, _ = tangents
    inverse = lax.rsqrt(square)
    rest = jnp.minimum(rest, jnp.finfo(rest.dtype).max)  # no infinity times 0
    slope = inverse * rest * inverse * dx - 0.5 * x * inverse * inverse * drest
    return _cosine_by_squares(x, rest, square), inverse * slope


@jax.custom_jvp
def _angle(y, x):
    """atan2 that is never NaN, neither for two subnormals nor in its derivative at (0, 0)."""
    tiny = jnp.finfo(x.dtype).tiny
    y, x = (jnp.where(jnp.abs(a) < tiny, jnp.zeros_like(a), a) for a in (y, x))
    return jnp.arctan2(y, x)


@_angle.defjvp
def _angle_jvp(primals, tangents):
    (y, x), (dy, dx) = primals, tangents
    h = jnp.hypot(y, x)
    return _angle(y, x), (_ratio(x, h) * dy - _ratio(y, h) * dx) * _inverse(h)


@jax.custom_jvp
def _sine_products(angles):
    """Π_{j<k} sin φ_j, k = 1 ... n: [..., n - 1] -> [..., n].

    A running product of n rounded sines near 1 drifts; log|sin φ| = ½ log1p(-cos² φ) is exact
    there. Signs (and exact zeros) are multiplied separately.
    """
    sines = jnp.sin(angles)
    logs = lax.cumsum(_log_sine(angles), axis=angles.ndim - 1)
    products = jnp.exp(logs) * lax.cumprod(jnp.sign(sines), axis=angles.ndim - 1)
    return jnp.concatenate([jnp.ones_like(angles[..., :1]), products], axis=-1)


@_sine_products.defjvp
def _sine_products_jvp(primals, tangents):
    (angles,), (dangles,) = primals, tangents
    products = _sine_products(angles)
    # P_{k+1} = P_k sin φ_k: differentiated as a recurrence, it needs no division by a sine.
    steps = _recurrence(jnp.sin(angles), products[..., :-1] * jnp.cos(angles) * dangles)
    return products, jnp.concatenate([jnp.zeros_like(angles[..., :1]), steps], axis=-1)


def _log(size):
    """log of a size >= 0, held (with gradient 0) below the root of the smallest normal number."""
    return jnp.log(jnp.maximum(size, jnp.finfo(size.dtype).tiny ** 0.5))


def _log_sine(angles):
    """log|sin φ|, accurate near the equator (where sin φ rounds to 1) and near the poles."""
    c, s = jnp.cos(angles), jnp.abs(jnp.sin(angles))
    near_equator = jnp.abs(c) < 0.5
    return jnp.where(near_equator, 0.5 * jnp.log1p(-jnp.where(near_equator, c * c, 0.0)), _log(s))
