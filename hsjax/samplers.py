"""Where new latents come from: each sampler has fit(embeddings) and sample(parameters, key, count).

Embeddings are the encoder's means, [count, n]. `fit` runs once, on the host in float64, and raises
a ValueError for fewer than 2 embeddings, a NaN, or a number beyond 1e30; `sample` is pure JAX with
an explicit key, jittable with a static count, and returns float32 [count, n]. A model with
`project` rescales every sample to √n when it decodes; a model without sees the radius drawn here,
which is the embeddings' mean radius for every sampler on a sphere but `uniform_sphere`.

`slerp` goes from one latent to another along the sphere.

Example:
  >>> embeddings = jax.random.normal(jax.random.key(0), (500, 8)) + 1.0
  >>> parameters = projected_gaussian.fit(embeddings)
  >>> z = projected_gaussian.sample(parameters, jax.random.key(1), 1000)
  >>> z.shape, bool(abs(coordinates.radius(z) - parameters.radius).max() < 1e-4)
  ((1000, 8), True)
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr
from jax.typing import ArrayLike

from hsjax import coordinates


class Sampler(NamedTuple):
    """fit: embeddings [count, n] -> parameters; sample: (parameters, key, count) -> [count, n]."""

    fit: Callable
    sample: Callable


def _float32(*arrays) -> tuple[Array, ...]:
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def _checked(embeddings) -> np.ndarray:
    """Embeddings as float64, or a ValueError that says why nothing can be fitted to them."""
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or min(embeddings.shape) < 2:
        raise ValueError(
            "embeddings must be [count, n], both at least 2, for a sampler to be fitted; "
            f"got shape {embeddings.shape}"
        )
    bad = int(np.sum(~(np.abs(embeddings) <= 1e30).all(axis=1)))  # float32 takes 1e38
    if bad:
        raise ValueError(f"{bad} of {len(embeddings)} embeddings hold a NaN or more than 1e30")
    return embeddings


def _directions(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit vectors (float64) and the mean radius."""
    radii = np.linalg.norm(embeddings, axis=1)
    return embeddings / np.where(radii > 0, radii, 1.0)[:, None], radii.mean()


# ---------------------------------------------------------------- prior and uniform on the sphere


def _fit_dimension(embeddings) -> Array:
    return jnp.zeros(_checked(embeddings).shape[1], jnp.float32)


def _sample_prior(zeros: Array, key: Array, count: int) -> Array:
    return jax.random.normal(key, (count, zeros.size), jnp.float32)


def _sample_uniform_sphere(zeros: Array, key: Array, count: int) -> Array:
    return coordinates.project(_sample_prior(zeros, key, count))


prior = Sampler(_fit_dimension, _sample_prior)
"""N(0, I), the standard VAE's own."""

uniform_sphere = Sampler(_fit_dimension, _sample_uniform_sphere)
"""Uniform on the sphere of radius √n: the prior's limit in high dimension."""


# ------------------------------------------------------------------------------- von Mises-Fisher


class VonMisesFisher(NamedTuple):
    """Density ∝ exp(κ direction·x) on the unit sphere, and the table that samples it; float32."""

    direction: Array  # [n], unit
    kappa: Array  # scalar
    radius: Array  # scalar, what unit samples are multiplied by
    angle: Array  # [nodes], decreasing angles between direction and x, in radians
    cumulative: Array  # [nodes], the probability of a larger one


@np.errstate(under="ignore")
def mean_resultant_length(n: int, kappa: float) -> float:
    """A_n(κ) = I_{n/2}(κ) / I_{n/2-1}(κ), the length of the mean of a von Mises-Fisher law.

    I_v / I_{v-1} = 1 / (2v/κ + I_{v+1} / I_v), run downwards from an order so high that a bound
    (Amos, 1974) is as good as the value: accurate to float64 for any n >= 2 and κ >= 0.

    Example:
      >>> round(mean_resultant_length(3, 2.0), 6)  # coth κ - 1/κ in three dimensions
      0.537315
    """
    if kappa == 0.0:
        return 0.0
    steps = 5000
    v = 0.5 * n + steps
    ratio = kappa / (v - 0.5 + np.sqrt((v + 0.5) ** 2 + kappa**2))
    for k in range(1, steps + 1):
        ratio = 1.0 / (2.0 * (v - k) / kappa + ratio)
    return float(ratio)


@np.errstate(under="ignore")
def concentration(n: int, length: float) -> float:
    """κ with A_n(κ) = length: the maximum likelihood for a mean of unit vectors that long.

    Args:
      n: dimension, >= 2.
      length: norm of the mean of unit vectors, in [0, 1).

    Raises:
      ValueError: length outside of [0, 1); all vectors equal would need an infinite κ.

    Example:
      >>> round(concentration(3, 0.537315), 4)
      2.0
    """
    if not 0.0 <= length < 1.0:
        raise ValueError(f"length must be in [0, 1), got {length}")
    kappa = length * (n - length**2) / (1.0 - length**2)  # Banerjee et al., 2005
    for _ in range(20):
        a = mean_resultant_length(n, kappa)
        slope = 1.0 - a * a - (n - 1) * a / kappa if kappa else 1.0 / n
        step = (a - length) / slope
        kappa = max(kappa - step, 0.5 * kappa)
        if abs(step) <= 1e-12 * kappa:
            break
    return float(kappa)


@np.errstate(under="ignore")
def _fit_vmf(embeddings) -> VonMisesFisher:
    units, radius = _directions(_checked(embeddings))
    n = units.shape[1]
    mean = units.mean(axis=0)
    length = float(np.linalg.norm(mean))
    direction = mean / length if length > 0 else np.eye(n)[0]
    # 1 - length², which keeps its digits however tight the island is; a zero vector adds 1.
    deficit = np.mean(np.sum((units - mean) ** 2, axis=1)) + np.mean(~units.any(axis=1))
    if (
        deficit < 1e-4
    ):  # 1 - A_n² = (n-1)/κ - (n-1)(n-2)/2κ² + ...; below 1e-15 float32 has one point
        kappa = (n - 1) / max(deficit, 1e-15) - 0.5 * (n - 2)
    else:
        kappa = concentration(n, length)

    # The angle from the mean direction has a density ∝ sin(angle)^{n-2} e^{κ cos(angle)}. Its
    # inverse distribution function is tabulated around the mode.
    ratio = 0.5 * (n - 2) / max(kappa, 1e-100)
    mode = 2.0 * np.arcsin(np.sqrt(ratio / (1.0 + ratio + np.hypot(1.0, ratio))))
    spread = 1.0 / np.sqrt(n - 1 + kappa)  # no narrower than half of the true one
    angle = np.linspace(min(mode + 40 * spread, np.pi), max(mode - 40 * spread, 0.0), 16_384)
    with np.errstate(divide="ignore"):
        power = (n - 2) * np.log(np.sin(angle)) if n > 2 else 0.0
    log_density = power - 2.0 * kappa * np.sin(0.5 * angle) ** 2
    density = np.exp(log_density - log_density.max())
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return VonMisesFisher(*_float32(direction, kappa, radius, angle, cumulative / cumulative[-1]))


def _sample_vmf(parameters: VonMisesFisher, key: Array, count: int) -> Array:
    angle_key, tangent_key = jax.random.split(key)
    uniform = jax.random.uniform(angle_key, (count,), jnp.float32)
    angle = jnp.interp(uniform, parameters.cumulative, parameters.angle)[:, None]
    direction = parameters.direction
    tangent = jax.random.normal(tangent_key, (count, direction.size), jnp.float32)
    along = jnp.matmul(tangent, direction, precision="highest")[:, None]
    tangent = coordinates.project(tangent - along * direction[None], 1.0)
    return parameters.radius * (jnp.cos(angle) * direction[None] + jnp.sin(angle) * tangent)


vmf = Sampler(_fit_vmf, _sample_vmf)
"""The von Mises-Fisher law of maximum likelihood (section 4.4).

It has the embeddings' mean direction and the trace of their covariance, not the covariance itself:
its single κ is the same in all directions. No sample is rejected.
"""


# ------------------------------------------------------------------- projected Gaussian, mixtures


class Mixture(NamedTuple):
    """Gaussians N(mean, factor factorᵀ) by weight, projected to a radius; float32."""

    log_weights: Array  # [components]
    means: Array  # [components, n]
    factors: Array  # [components, n, n]
    radius: Array  # scalar


def _root(covariance: np.ndarray) -> np.ndarray:
    """F with F Fᵀ = covariance, also when there are fewer embeddings than coordinates."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]


@np.errstate(under="ignore")
def _fit_projected_gaussian(embeddings) -> Mixture:
    embeddings = _checked(embeddings)
    covariance = np.cov(embeddings, rowvar=False)
    _, radius = _directions(embeddings)
    means, factors = embeddings.mean(axis=0)[None], _root(covariance)[None]
    return Mixture(*_float32(np.zeros(1), means, factors, radius))


@np.errstate(under="ignore")
def _fit_projected_gmm(embeddings) -> Mixture:
    from sklearn.exceptions import ConvergenceWarning  # a second to import
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    embeddings = _checked(embeddings)
    if len(embeddings) > 10_000:  # enough for the moments, and a minute less
        embeddings = np.random.default_rng(0).choice(embeddings, 10_000, replace=False)
    # Around their mean and in units of their spread about it, for the ridge on the covariances to
    # mean the same. It serves the fit alone and is taken off again.
    mean, ridge = embeddings.mean(axis=0), 1e-4
    scale = (embeddings - mean).std()
    mixture = GaussianMixture(
        min(10, len(embeddings)), reg_covar=ridge, max_iter=50, random_state=0
    )
    # Its products are small: on busy cores a second thread costs more than it does.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits don't matter
        mixture.fit((embeddings - mean) / (scale or 1.0))
    _, radius = _directions(embeddings)
    return Mixture(
        *_float32(
            np.log(mixture.weights_),
            mean + scale * mixture.means_,
            scale * _root(mixture.covariances_ - ridge * np.eye(len(mean))),
            radius,
        )
    )


def _sample_mixture(parameters: Mixture, key: Array, count: int) -> Array:
    choice_key, noise_key = jax.random.split(key)
    choice = jax.random.categorical(choice_key, parameters.log_weights, shape=(count,))
    noise = jax.random.normal(noise_key, (count, parameters.means.shape[1]), jnp.float32)

    def component(z, part):  # one at a time: gathering a factor per sample would be count × n²
        index, mean, factor = part
        mine = mean[None] + jnp.matmul(noise, factor.T, precision="highest")
        return jnp.where((choice == index)[:, None], mine, z), None

    parts = (jnp.arange(len(parameters.means)), parameters.means, parameters.factors)
    z, _ = jax.lax.scan(component, jnp.zeros_like(noise), parts)
    return coordinates.project(z, parameters.radius)


projected_gaussian = Sampler(_fit_projected_gaussian, _sample_mixture)
"""A Gaussian of the embeddings' mean and covariance, projected to their mean radius.

One reading of the paper's "von Mises-Fisher distribution with the same mean and covariance as the
embeddings" (section 4.4), which a von Mises-Fisher law proper cannot have.
"""

projected_gmm = Sampler(_fit_projected_gmm, _sample_mixture)
"""Ten Gaussians with full covariances, projected likewise.

Fitted by scikit-learn, with a fixed seed, to at most 10,000 of the embeddings.
"""


# ------------------------------------------------------------------------------------------ angles


class AngleCopula(NamedTuple):
    """Empirical marginals of the angles, joined by a Gaussian copula; float32."""

    factor: Array  # [n - 1, n - 1], root of the correlation of the angles' normal scores
    levels: Array  # [levels], probabilities
    quantiles: Array  # [n - 1, levels], the angles at them
    radius: Array  # scalar


@np.errstate(under="ignore")
def _fit_angles(embeddings) -> AngleCopula:
    from scipy.special import ndtri
    from scipy.stats import rankdata

    units, radius = _directions(_checked(embeddings))
    _, in_float32 = coordinates.to_spherical(jnp.asarray(units, jnp.float32))
    angles = np.asarray(in_float32, np.float64)
    # The last angle is a full turn: it is cut where the data is not, opposite to its mean.
    middle = np.angle(np.exp(1j * angles[:, -1]).mean())
    angles[:, -1] = middle + np.angle(np.exp(1j * (angles[:, -1] - middle)))
    scores = ndtri((rankdata(angles, axis=0) - 0.5) / len(angles))
    covariance = np.atleast_2d(np.cov(scores, rowvar=False))
    deviation = np.sqrt(np.diag(covariance))
    deviation = np.where(deviation > 0, deviation, 1.0)
    correlation = covariance / np.outer(deviation, deviation)
    np.fill_diagonal(correlation, 1.0)
    levels = (np.arange(min(len(angles), 1024)) + 0.5) / min(len(angles), 1024)
    quantiles = np.quantile(angles, levels, axis=0).T
    return AngleCopula(*_float32(_root(correlation), levels, quantiles, radius))


def _sample_angles(parameters: AngleCopula, key: Array, count: int) -> Array:
    noise = jax.random.normal(key, (count, len(parameters.factor)), jnp.float32)
    level = ndtr(jnp.matmul(noise, parameters.factor.T, precision="highest"))
    marginal = jax.vmap(jnp.interp, in_axes=(1, None, 0), out_axes=1)
    angles = marginal(level, parameters.levels, parameters.quantiles)
    return coordinates.to_cartesian(jnp.full(count, parameters.radius), angles)


angles = Sampler(_fit_angles, _sample_angles)
"""What the coordinates suggest: each angle as in the embeddings, joined by a Gaussian copula."""


SAMPLERS = {
    "prior": prior,
    "uniform_sphere": uniform_sphere,
    "vmf": vmf,
    "projected_gaussian": projected_gaussian,
    "projected_gmm": projected_gmm,
    "angles": angles,
}


def slerp(start: ArrayLike, end: ArrayLike, fractions: ArrayLike) -> Array:
    """Spherical linear interpolation: the great circle for the direction, a line for the radius.

    Opposite directions have no single great circle: the way then leads straight through 0. A zero
    vector has no direction: what lies between follows the other one's.

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
      >>> print(np.asarray(slerp([1.0, 0.0], [0.0, 3.0], [0.0, 0.5, 1.0])).round(2))
      [[1.   0.  ]
       [1.41 1.41]
       [0.   3.  ]]
    """
    start, end = coordinates.widened(start, "start"), coordinates.widened(end, "end")
    fractions = coordinates.widened(fractions, "fractions")
    if start.shape != end.shape or start.ndim != 1 or fractions.ndim != 1:
        raise ValueError(
            "start and end must be [n], and fractions [count], "
            f"got {start.shape}, {end.shape} and {fractions.shape}"
        )
    lengths = coordinates.radius(start), coordinates.radius(end)
    a, b = coordinates.project(start, 1.0), coordinates.project(end, 1.0)
    a, b = jnp.where(lengths[0] == 0, b, a), jnp.where(lengths[1] == 0, a, b)
    # From the middle of the way, where nothing cancels: half of its angle is h at the ends.
    between, middle = b - a, a + b
    h = jnp.arctan2(coordinates.radius(between), coordinates.radius(middle))
    # At right angles also when a + b is hardly more than a rounding error.
    lean = jnp.sum(middle * between) / jnp.maximum(jnp.sum(between**2), 1.0)
    middle = coordinates.project(middle - lean * between, 1.0)
    part = 2.0 * fractions - 1.0
    near = h < 1e-3  # sin(part h) / sin(h) by its series
    ratio = jnp.where(
        near,
        part * (1.0 + (1.0 - part**2) * h**2 / 6.0),
        jnp.sin(part * h) / jnp.where(near, 1.0, jnp.sin(h)),
    )
    direction = jnp.cos(part * h)[:, None] * middle[None] + 0.5 * ratio[:, None] * between[None]
    return ((1.0 - fractions) * lengths[0] + fractions * lengths[1])[:, None] * direction
