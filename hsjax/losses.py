"""The objectives: equations (1) to (6) of the paper and the variant of the authors' code.

A VAE minimises reconstruction error + β · regulariser (2)(6). The regulariser is one of

* `gaussian_kl`, the standard VAE (1);
* `cartesian_kl`, a KL-like objective in batch statistics of Cartesian coordinates (3);
* `total(spherical_kl(mean, std, spec), spec)`, batch statistics of hyperspherical coordinates
  (4)(5), with the targets and gains of a `Spec`: `paper_spec` or `published_spec`.

Everything is computed in float32 or wider, whatever the dtype of the input. An array that isn't
floating-point raises a TypeError that names the argument. Squares are not rescaled: for inputs from
about 1e16 on (float32), they, their products with gains, or derivatives overflow, and the result is
infinite or NaN. NaN gives NaN.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from hsjax.coordinates import cosines, diagonal_cosines, widened
from hsjax.statistics import coordinate_moments


def squared_error(x: ArrayLike, reconstruction: ArrayLike) -> Array:
    """Reconstruction error of equation (1): sum over an image's values, mean over the batch.

    Args:
      x: [batch, ...], batch >= 1, usually in [0, 1].
      reconstruction: the same shape.

    Returns:
      Scalar, in squared units of x.

    Raises:
      ValueError: the shapes differ, or there is no batch.

    Example:
      >>> squared_error(jnp.ones((2, 3)), jnp.zeros((2, 3)))
      Array(3., dtype=float32)
    """
    x, reconstruction = widened(x, "x"), widened(reconstruction, "reconstruction")
    if x.shape != reconstruction.shape:
        raise ValueError(f"reconstruction has shape {reconstruction.shape}, but x {x.shape}")
    if not x.shape or not x.shape[0]:
        raise ValueError(f"x needs a batch of at least 1, got shape {x.shape}")
    return jnp.sum((x - reconstruction) ** 2) / x.shape[0]


def gaussian_kl(mean: ArrayLike, log_variance: ArrayLike) -> Array:
    """KL divergence of N(μ, σ²) from N(0, I), equation (1): sum over n, mean over the batch.

    Args:
      mean: [batch, n], μ, batch >= 1.
      log_variance: [batch, n], log σ²; from 88 on (float32), σ² overflows.

    Returns:
      Scalar, in nats.

    Raises:
      ValueError: the shapes differ or aren't [batch, n].

    Example:
      >>> gaussian_kl(jnp.zeros((5, 8)), jnp.zeros((5, 8)))  # the prior itself
      Array(0., dtype=float32)
      >>> gaussian_kl(jnp.ones((5, 8)), jnp.zeros((5, 8)))
      Array(4., dtype=float32)
    """
    mean, log_variance = _pair(mean, log_variance, "log_variance")
    return 0.5 * jnp.mean(jnp.sum(mean**2 + jnp.expm1(log_variance) - log_variance, axis=-1))


def cartesian_kl(
    mean: ArrayLike, std: ArrayLike, *, prior_mean: ArrayLike = 0.0, prior_std: ArrayLike = 1.0
) -> Array:
    """The KL-like objective in batch statistics of Cartesian coordinates, equation (3).

    Σ_k (E_b[σ_k] - σ_k^p)² + σ_b[σ_k]² + (E_b[μ_k] - μ_k^p)² + σ_b[μ_k]², with the biased variance,
    which makes it equal to the batch mean of ‖σ - σ^p‖² + ‖μ - μ^p‖².

    Args:
      mean: [batch, n], μ, batch >= 1.
      std: [batch, n], σ.
      prior_mean: μ^p, scalar or [n].
      prior_std: σ^p, scalar or [n].

    Returns:
      Scalar, in squared units of the latent.

    Raises:
      ValueError: the shapes of mean and std differ or aren't [batch, n], or a prior's is neither
        scalar nor [n].

    Example:
      >>> cartesian_kl(jnp.ones((5, 8)), jnp.ones((5, 8)))
      Array(8., dtype=float32)
    """
    mean, std = _pair(mean, std, "std")

    def distance(x: Array, prior: ArrayLike) -> Array:
        prior = jnp.asarray(prior, x.dtype)
        if prior.shape not in ((), x.shape[1:]):
            raise ValueError(f"a prior has shape {prior.shape}: make it a scalar or {x.shape[1:]}")
        return jnp.sum((jnp.mean(x, 0) - prior) ** 2 + jnp.var(x, 0))

    return distance(mean, prior_mean) + distance(std, prior_std)


class SphericalTerms(NamedTuple):
    """The four parts of (4) and (5), scalars, before the overall gains of the spec."""

    mean_angles: Array | float
    mean_radius: Array | float
    std_angles: Array | float
    std_radius: Array | float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spec:
    """Targets and gains of the spherical objective: a pytree, so sweeping a value never recompiles.

    Arrays are [2, n]: row 0 is μ, row 1 is σ; columns 0 ... n-2 are the angles, the last is the
    radius. In the paper's letters: mean_target a, mean_gain α, spread_target b, spread_gain β.
    """

    mean_target: Array
    mean_gain: Array
    spread_target: Array
    spread_gain: Array
    spread_scale: Array  # multiplies the batch standard deviation in the "kl" form
    term_gains: SphericalTerms  # overall gains, applied by `total`
    eps: ArrayLike  # added to the squared tails
    variance_eps: ArrayLike  # added to the batch variances
    # "squared": (σ_b - b)²; "kl": s² - log s² - 1 of s = scale σ_b + 1 - b
    form: str = dataclasses.field(metadata={"static": True}, default="squared")


COMPRESSIONS = ("full", "half", "none")


def paper_spec(
    n: int,
    *,
    compression: str = "full",
    mean_target: ArrayLike | None = None,
    spread_target: ArrayLike | None = None,
    compressed_angles: int | None = None,
    angle_gain: Array | float = 1.0,
    radius_gain: Array | float = 1.0,
    eps: ArrayLike = 1e-3,
    variance_eps: ArrayLike = 1e-4,
) -> Spec:
    """Squared differences, equations (4) and (5), with the compression of (7) and (8).

    The paper gives a = 1 for the cosines of μ, a = √n for its radius, and gains 1/√(k+1) with k the
    0-based coordinate. What it leaves open follows the prior N(0, I): the cosines of μ spread like
    those of a Gaussian vector; σ = (1, ..., 1), so its cosines are the diagonal's, its radius is √n
    and its spreads are 0; and the radius of μ has spread 0.

    Args:
      n: latent dimension, >= 2.
      compression: target of the mean cosines of μ: "full" 1, "half" those of the diagonal
        (1, ..., 1), "none" 0.
      mean_target: the target itself, in place of compression: scalar or [n - 1].
      spread_target: target spread of the cosines of μ, scalar or [n - 1]; the prior's, 1/√(n-k+1),
        if None.
      compressed_angles: number of leading cosines of μ that get these targets; all n - 1 if None.
        The others keep the prior's mean 0 and spread.
      angle_gain: overall gain of both angle terms.
      radius_gain: overall gain of both radius terms.
      eps: added to the squared tails, in squared units of the latent; positive.
      variance_eps: added to every batch variance; at 0, a batch of equal rows has no derivative.

    Raises:
      ValueError: n < 2, an unknown compression, a target that is neither a scalar nor [n - 1], or
        fewer than 1 or more than n - 1 compressed angles.

    Example:
      >>> spec = paper_spec(4, compression="half")
      >>> [f"{target:.2f}" for target in spec.mean_target[0]]  # three cosines of μ, its radius
      ['0.50', '0.58', '0.71', '2.00']
    """
    diagonal = _diagonal(n)
    mean_target = _compressed(compression, diagonal) if mean_target is None else mean_target
    spread_target = diagonal if spread_target is None else spread_target
    if compressed_angles is not None:
        compressed = _first(compressed_angles, n)
        mean_target = jnp.where(compressed, mean_target, 0.0)
        spread_target = jnp.where(compressed, spread_target, diagonal)
    gain = jnp.append(lax.rsqrt(jnp.arange(1, n, dtype=jnp.float32)), 1.0)
    gains = jnp.stack([gain, gain])
    return Spec(
        mean_target=_rows((mean_target, n**0.5), (diagonal, n**0.5), n),
        mean_gain=gains,
        spread_target=_rows((spread_target, 0.0), (0.0, 0.0), n),
        spread_gain=gains,
        spread_scale=jnp.ones((2, n), jnp.float32),
        term_gains=SphericalTerms(angle_gain, radius_gain, angle_gain, radius_gain),
        eps=eps,
        variance_eps=variance_eps,
        form="squared",
    )


def published_spec(
    n: int,
    compression: str = "full",
    *,
    compressed_angles: int | None = None,
    mean_weights: ArrayLike = 1.0,
    std_radius: ArrayLike = 1.0,
    std_angle_gain: Array | float = 500_000.0,
) -> Spec:
    """The variant of the authors' public code, with all its constants.

    Its spread terms are s² - log s² - 1 of s = σ_b + 1 - b (s = σ_b/√½ for the radius of σ). Angle
    terms weigh 50 √n/√(k+1), their mean parts 0.05 of that, and radius terms 50. Both radii have
    the target √(n - ½). The diagonal's cosines have eps in their squared tails: 1/√(n-k+1+eps).
    `total` multiplies the four terms by 1000, 300, std_angle_gain and 500.

    Args:
      n: latent dimension, >= 2.
      compression: as in `paper_spec`.
      compressed_angles: number of leading mean cosines of μ that get this target; all n - 1 if
        None. The target of the others is 0.
      mean_weights: further weights of the mean cosines of μ, scalar or [n - 1].
      std_radius: factor on the target of σ's radius; a later version of the code has 0.001.
      std_angle_gain: overall gain of σ's angle term: 50,000 for MNIST, 225,000 for Fashion-MNIST,
        500,000 for CIFAR10, SVHN and CelebA in the authors' code.

    Raises:
      ValueError: n < 2, an unknown compression, or compressed angles as in `paper_spec`.

    Example:
      >>> spec = published_spec(4)
      >>> [f"{gain:.2f}" for gain in spec.mean_gain[0]]  # 0.05 · 50 √n/√(k+1); 50 for the radius
      ['5.00', '3.54', '2.89', '50.00']
    """
    eps = 1e-3
    diagonal = lax.rsqrt(_diagonal(n) ** -2 + eps)
    angle = 50.0 * n**0.5 * lax.rsqrt(jnp.arange(1, n, dtype=jnp.float32))
    radius = (n - 0.5) ** 0.5
    mean_target = _compressed(compression, diagonal)
    if compressed_angles is not None:
        mean_target = jnp.where(_first(compressed_angles, n), mean_target, 0.0)
    return Spec(
        mean_target=_rows((mean_target, radius), (diagonal, radius * std_radius), n),
        mean_gain=_rows((0.05 * angle * mean_weights, 50.0), (0.05 * angle, 50.0), n),
        # For the radius of σ, s has no "+ 1 - b": that is b = 1.
        spread_target=_rows((diagonal, 0.0), (0.0, 1.0), n),
        spread_gain=_rows((angle, 50.0), (angle, 50.0), n),
        spread_scale=_rows((1.0, 1.0), (1.0, 2.0**0.5), n),
        term_gains=SphericalTerms(1000.0, 300.0, std_angle_gain, 500.0),
        eps=eps,
        variance_eps=1e-4,
        form="kl",
    )


def spherical_kl(
    mean: ArrayLike,
    std: ArrayLike,
    spec: Spec,
    *,
    moments: Callable[[ArrayLike, ArrayLike], tuple[Array, Array]] = coordinate_moments,
) -> SphericalTerms:
    """The KL-like objective in hyperspherical coordinates, equations (4) and (5), term by term.

    Args:
      mean: [batch, n], μ.
      std: [batch, n], σ.
      spec: targets and gains for this n.
      moments: function that computes the batch statistics, as `statistics.coordinate_moments`.

    Returns:
      Four scalars; `total` adds them up with the overall gains.

    Raises:
      ValueError: shapes that differ, aren't [batch, n] or have another n than the spec; or a batch
        of 1, whose variance is undefined.

    Example:
      >>> spec = paper_spec(8, compression="half", spread_target=0.0, variance_eps=0.0)
      >>> ones = jnp.ones((5, 8))  # the diagonal, the target of "half"
      >>> terms = spherical_kl(ones, ones, spec)
      >>> bool(total(terms, spec) < 1e-6)
      True
    """
    mean, std = _pair(mean, std, "std")
    if mean.shape[-1] != spec.mean_target.shape[-1]:
        raise ValueError(
            f"mean has shape {mean.shape}, but the spec is for n = {spec.mean_target.shape[-1]}"
        )
    average, variance = moments(jnp.stack([mean, std]), spec.eps)
    columns = _columns(average, variance, spec)
    angles, radius = jnp.sum(columns[:, :-1], axis=1), columns[:, -1]
    return SphericalTerms(angles[0], radius[0], angles[1], radius[1])


def _columns(average: Array, variance: Array, spec: Spec) -> Array:
    """Location and dispersion of each coordinate, in the shape of the spec's arrays."""
    spread = jnp.sqrt(variance + spec.variance_eps)
    location = spec.mean_gain * (average - spec.mean_target) ** 2
    if spec.form == "squared":
        dispersion = (spread - spec.spread_target) ** 2
    else:
        excess = spec.spread_scale * spread - spec.spread_target  # s - 1
        excess = excess * (2.0 + excess)  # s² - 1
        dispersion = excess - jnp.log1p(excess)
    return location + spec.spread_gain * dispersion


def spherical_kl_by_class(
    mean: ArrayLike,
    std: ArrayLike,
    spec: Spec,
    labels: ArrayLike,
    *,
    classes: int,
    stride: int = 10,
) -> tuple[SphericalTerms, Array]:
    """Equations (4) and (5) with an axis for each class: arXiv 2601.18823.

    The coordinates of μ are rolled left by stride · label, so that each class's own coordinates
    come first. Mean and spread of the cosines of μ are taken within each class, and the terms of
    all classes are added up. Those of the radius of μ, and of σ, are taken over the whole batch.

    Args:
      mean: [batch, n], μ.
      std: [batch, n], σ.
      spec: targets and gains for this n.
      labels: integers [batch], 0 ... classes - 1.
      classes: number of classes.
      stride: offset between the axes of consecutive classes, in coordinates.

    Returns:
      The terms, and how many classes have fewer than two images in the batch: these add nothing.

    Raises:
      ValueError: as `spherical_kl`, or labels aren't [batch].

    Example:
      >>> spec, labels = paper_spec(4), jnp.array([0, 0, 1, 1])
      >>> ones = jnp.ones((4, 4))
      >>> _, absent = spherical_kl_by_class(ones, ones, spec, labels, classes=3)
      >>> int(absent)
      1
    """
    terms = spherical_kl(mean, std, spec)
    mean, labels = widened(mean, "mean"), jnp.asarray(labels)
    if labels.shape != mean.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}: make it {mean.shape[:1]}")
    places = (jnp.arange(mean.shape[1])[None] + stride * labels[:, None]) % mean.shape[1]
    rolled = jnp.take_along_axis(mean, places, axis=1)
    of_images = cosines(rolled, eps=spec.eps)
    members = jax.nn.one_hot(labels, classes, axis=0, dtype=mean.dtype)  # [classes, batch]
    count = jnp.sum(members, axis=1)
    average = _over_images(members, of_images) / jnp.maximum(count, 1.0)[:, None]
    offsets = of_images - average[labels]
    variance = _over_images(members, offsets**2) / jnp.maximum(count - 1.0, 1.0)[:, None]
    present = count >= 2.0
    # An absent class gets variance 1, whose square root has a derivative.
    variance = jnp.where(present[:, None], variance, 1.0)
    arrays = ("mean_target", "mean_gain", "spread_target", "spread_gain", "spread_scale")
    of_angles = {name: getattr(spec, name)[:1, :-1] for name in arrays}
    columns = _columns(average, variance, dataclasses.replace(spec, **of_angles))
    angles = jnp.sum(columns, axis=1)
    angles = jnp.sum(jnp.where(present, angles, 0.0))
    return terms._replace(mean_angles=angles), classes - jnp.sum(present)


def _over_images(members: Array, x: Array) -> Array:
    return jnp.matmul(members, x, precision="highest")


def total(terms: SphericalTerms, spec: Spec) -> Array:
    """Weighted sum of the four terms: what β multiplies in equation (6). Scalar.

    Example:
      >>> spec = paper_spec(4, angle_gain=10.0)
      >>> float(total(SphericalTerms(0.5, 1.0, 0.0, 0.0), spec))  # 10 · 0.5 + 1
      6.0
    """
    return jnp.asarray(sum(g * term for g, term in zip(spec.term_gains, terms, strict=True)))


ANNEALINGS = ("none", "sqrt", "published", "published_drop")


@partial(jax.jit, static_argnames="form")
def annealing(epoch: ArrayLike, *, form: str = "sqrt", length: ArrayLike = 100) -> Array:
    """Factor on β at an epoch counted from 1 (section 4.1).

    Args:
      epoch: 1, 2, ... of any shape; "sqrt" also takes 0. Earlier epochs give NaN, unless "none".
      form: "sqrt", √(epoch / length), constant at 1 from epoch `length` on, so that β is the final
        weight; "published", √(epoch - 1) + 1, which the authors' code (its epochs count from 0)
        uses for half compression; "published_drop", the same, but 1 once epoch - 1 > `length`,
        which it uses for full compression; "none", 1.
      length: epochs of annealing, positive.

    Returns:
      float32, the shape of epoch.

    Raises:
      ValueError: an unknown form.

    Example:
      >>> annealing(jnp.array([1, 25, 100, 300]))
      Array([0.1, 0.5, 1. , 1. ], dtype=float32)
    """
    epoch = jnp.asarray(epoch, jnp.float32)
    length = jnp.asarray(length, jnp.float32)
    if form == "sqrt":
        return jnp.sqrt(jnp.minimum(epoch, length) / length)
    if form == "published":
        return jnp.sqrt(epoch - 1.0) + 1.0
    if form == "published_drop":
        return jnp.where(epoch - 1.0 > length, 1.0, jnp.sqrt(epoch - 1.0) + 1.0)
    if form == "none":
        return jnp.ones_like(epoch)
    raise ValueError(f"form must be one of {', '.join(ANNEALINGS)}, got {form!r}")


def _pair(mean: ArrayLike, other: ArrayLike, name: str) -> tuple[Array, Array]:
    mean, other = widened(mean, "mean"), widened(other, name)
    if mean.ndim != 2 or mean.shape != other.shape or not len(mean):
        raise ValueError(
            f"mean and {name} must both be [batch, n], got {mean.shape} and {other.shape}"
        )
    return mean, other


def _diagonal(n: int) -> Array:
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    return diagonal_cosines(n)


def _compressed(compression: str, diagonal: Array) -> ArrayLike:
    if compression not in COMPRESSIONS:
        raise ValueError(
            f"compression must be one of {', '.join(COMPRESSIONS)}, got {compression!r}"
        )
    targets: dict[str, ArrayLike] = {"full": 1.0, "half": diagonal, "none": 0.0}
    return targets[compression]


def _first(count: int, n: int) -> Array:
    """Mask of the first `count` of the n - 1 angles."""
    if not 1 <= count < n:
        raise ValueError(f"compressed_angles is {count}: n = {n} has {n - 1} angles")
    return jnp.arange(n - 1) < count


def _rows(mean, std, n: int) -> Array:
    """[2, n] from the (angles, radius) of μ and of σ."""

    def row(angles, radius):
        angles = jnp.broadcast_to(jnp.asarray(angles, jnp.float32), (n - 1,))
        return jnp.append(angles, jnp.asarray(radius, jnp.float32))

    return jnp.stack([row(*mean), row(*std)])
