"""Mixtures of Gaussians with full covariances, in R^n or projected to a sphere.

A component with a singular covariance (if there are fewer embeddings than coordinates, for example)
has no density: it is still sampled, but counts as -inf in `log_prob`. A covariance counts as
singular if a standard deviation is below a millionth of the largest: float32 can't tell it from 0.
"""

import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from hsjax.coordinates import project, radius, widened
from hsjax.samplers.base import Sampler, checked, directions, float32, root


class Mixture(NamedTuple):
    """Weighted Gaussians N(mean, factor factorᵀ), and a sphere to project them to; float32."""

    log_weights: Array  # [components]
    means: Array  # [components, n]
    factors: Array  # [components, n, n], of orthogonal columns
    radius: Array  # scalar


@np.errstate(under="ignore")
def fit(means, **_) -> Mixture:
    """Ten Gaussians, fitted by scikit-learn with a fixed seed to at most 10,000 means [count, n].

    Raises:
      ValueError: fewer than 2 means, or a NaN or more than 1e30 among them.
    """
    from sklearn.exceptions import ConvergenceWarning  # a second to import
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    embeddings = checked(means)
    if len(embeddings) > 10_000:  # enough for the moments, and a minute less
        embeddings = np.random.default_rng(0).choice(embeddings, 10_000, replace=False)
    # Centred and divided by their spread, so that the ridge on the covariances is always relative
    # to it. The ridge is only for the fit and is subtracted afterwards.
    mean, ridge = embeddings.mean(axis=0), 1e-4
    scale = (embeddings - mean).std()
    mixture = GaussianMixture(
        min(10, len(embeddings)), reg_covar=ridge, max_iter=50, random_state=0
    )
    # Its products are small: on busy cores a second thread costs more than it saves.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits don't matter
        mixture.fit((embeddings - mean) / (scale or 1.0))
    sphere = directions(embeddings)[1]
    return Mixture(
        *float32(
            np.log(mixture.weights_),
            mean + scale * mixture.means_,
            scale * root(mixture.covariances_ - ridge * np.eye(len(mean))),
            sphere,
        )
    )


def sample(parameters: Mixture, key: Array, count: int) -> Array:
    """Points of R^n, float32 [count, n]."""
    choice_key, noise_key = jax.random.split(key)
    choice = jax.random.categorical(choice_key, parameters.log_weights, shape=(count,))
    noise = jax.random.normal(noise_key, (count, parameters.means.shape[1]), jnp.float32)

    def component(z, part):  # one at a time: gathering a factor per sample would be count × n²
        index, mean, factor = part
        mine = mean[None] + jnp.matmul(noise, factor.T, precision="highest")
        return jnp.where((choice == index)[:, None], mine, z), None

    parts = (jnp.arange(len(parameters.means)), parameters.means, parameters.factors)
    z, _ = jax.lax.scan(component, jnp.zeros_like(noise), parts)
    return z


def sample_projected(parameters: Mixture, key: Array, count: int) -> Array:
    """Points of the sphere, float32 [count, n]: those of `sample`, rescaled."""
    return project(sample(parameters, key, count), parameters.radius)


def log_prob(parameters: Mixture, z: ArrayLike) -> Array:
    """log Σ_k w_k N(z; mean_k, covariance_k), per volume of R^n.

    Args:
      parameters: from `fit`.
      z: [count, n] floating-point.

    Returns:
      [count], float32 or wider; -inf where no component has a density.

    Raises:
      TypeError: z is not floating-point.
    """
    z = widened(z, "z")
    return _log_mixture(parameters, z, _log_normal)


def log_prob_projected(parameters: Mixture, z: ArrayLike) -> Array:
    """log Σ_k w_k ∫ r^{n-1} N(r z/‖z‖; mean_k, covariance_k) dr - (n-1) log radius.

    The density of the projected variable, per area of the sphere of that radius.

    Args:
      parameters: from `fit`.
      z: [count, n] floating-point; only its direction matters.

    Returns:
      [count], float32 or wider; -inf where no component has a density.

    Raises:
      TypeError: z is not floating-point.
    """
    z = widened(z, "z")
    sphere = jnp.maximum(parameters.radius.astype(z.dtype), 1e-30)
    area = (z.shape[1] - 1) * jnp.log(sphere)
    return _log_mixture(parameters, project(z, 1.0), _log_normal_direction) - area


gmm = Sampler(fit, sample, log_prob, parameters=Mixture)
"""Ten Gaussians with full covariances.

Fitted by scikit-learn, with a fixed seed, to at most 10,000 of the embeddings.
"""

projected_gmm = Sampler(fit, sample_projected, log_prob_projected, parameters=Mixture)
"""The same ten Gaussians, projected to the embeddings' mean radius."""


# ------------------------------------------------------------------------------ their densities


def _log_mixture(parameters: Mixture, x: Array, log_density) -> Array:
    """Log density of x [count, n]: joint densities with each component, one at a time, summed."""
    log_weights, means, factors, _ = (a.astype(x.dtype) for a in parameters)
    variances = jnp.sum(factors * factors, axis=1)  # of the principal axes, [components, n]
    whole = jnp.all(variances > 1e-12 * jnp.max(variances), axis=1)
    # N(mean, I) replaces a singular component, so that no derivative is NaN.
    variances = jnp.where(whole[:, None], variances, 1.0)
    unit = jnp.eye(means.shape[1], dtype=x.dtype)
    factors = jnp.where(whole[:, None, None], factors, unit[None])

    def component(part):
        log_weight, mean, factor, variance, whole = part
        inverse = factor / variance[None]  # x @ inverse has unit covariance

        def whitened(x):
            return jnp.matmul(x, inverse, precision="highest")

        log_volume = 0.5 * jnp.sum(jnp.log(variance)) + 0.5 * len(mean) * math.log(2 * math.pi)
        found = log_weight - log_volume + log_density(whitened, x, mean)
        return jnp.where(whole, found, -jnp.inf)

    parts = log_weights, means, factors, variances, whole
    return logsumexp(jax.lax.map(component, parts), axis=0)


def _log_normal(whitened, x: Array, mean: Array) -> Array:
    """-‖whitened(x - mean)‖²/2, for x [count, n]."""
    distance = whitened(x - mean[None])
    return -0.5 * jnp.sum(distance * distance, axis=1)


def _log_normal_direction(whitened, u: Array, mean: Array) -> Array:
    """log ∫ r^{n-1} exp(-‖whitened(r u - mean)‖²/2) dr over r > 0, for unit vectors u [count, n].

    With a = whitened(u), t = r‖a‖ and m = a·whitened(mean) / ‖a‖, the t nearest the mean, it is
    -n log‖a‖ - ‖whitened(mean - m u / ‖a‖)‖²/2 + log ∫ t^{n-1} exp(-(t - m)²/2) dt.
    """
    a = whitened(u)
    length = radius(a)
    along = jnp.matmul(a, whitened(mean), precision="highest") / length
    rest = whitened(mean[None] - (along / length)[:, None] * u)
    n = u.shape[1]
    return log_radial(n, along) - 0.5 * jnp.sum(rest * rest, axis=1) - n * jnp.log(length)


def log_radial(n: int, m: Array) -> Array:
    """log ∫ t^{n-1} exp(-(t - m)²/2) dt over t > 0, for m [count].

    By the trapezoidal rule over d = log(t / mode), where the integrand is analytic and decays
    double exponentially to the right and as t^n to the left: relative to the mode its logarithm is
    n (1 + d - e^d) - mode² (e^d - 1)²/2.
    """
    root = jnp.sqrt(m * m + 4.0 * n)
    mode = jnp.where(m < 0, 2.0 * n / (root - jnp.minimum(m, 0.0)), 0.5 * (m + root))
    width = 1.0 / jnp.sqrt(mode * mode + n)  # no wider than the integrand is
    step = 0.5
    nodes = step * jnp.arange(-int(20 + 80 / n), 21, dtype=m.dtype)
    d = width[:, None] * nodes[None]
    growth = jnp.expm1(d)
    exponents = n * (d - growth) - 0.5 * (mode[:, None] * growth) ** 2
    peak = n * jnp.log(mode) - 0.5 * (n / mode) ** 2  # mode - m = n / mode
    return peak + jnp.log(step * width * jnp.sum(jnp.exp(exponents), axis=1))
