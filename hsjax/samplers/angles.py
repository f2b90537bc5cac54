"""Empirical marginals of the hyperspherical angles, joined by a Gaussian copula."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr

from hsjax.coordinates import to_cartesian, to_spherical
from hsjax.samplers.base import Sampler, checked, directions, float32, root


class AngleCopula(NamedTuple):
    """Empirical marginals of the angles, joined by a Gaussian copula; float32."""

    factor: Array  # [n - 1, n - 1], root of the correlation of the angles' normal scores
    levels: Array  # [levels], probabilities
    quantiles: Array  # [n - 1, levels], the angles at these levels
    radius: Array  # scalar


@np.errstate(under="ignore")
def fit(means, **_) -> AngleCopula:
    """Quantiles of the means' angles and the correlation of their normal scores.

    Args:
      means: [count, n].

    Raises:
      ValueError: fewer than 2 means, or a NaN or more than 1e30 among them.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    units, radius = directions(checked(means))
    in_float32 = to_spherical(jnp.asarray(units, jnp.float32))[1]
    angles = np.asarray(in_float32, np.float64)
    # The last angle covers a full turn: it is cut opposite its mean, away from the data.
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
    return AngleCopula(*float32(root(correlation), levels, quantiles, radius))


def sample(parameters: AngleCopula, key: Array, count: int) -> Array:
    """Points of the sphere, float32 [count, n]."""
    noise = jax.random.normal(key, (count, len(parameters.factor)), jnp.float32)
    level = ndtr(jnp.matmul(noise, parameters.factor.T, precision="highest"))
    marginal = jax.vmap(jnp.interp, in_axes=(1, None, 0), out_axes=1)
    drawn = marginal(level, parameters.levels, parameters.quantiles)
    return to_cartesian(jnp.full(count, parameters.radius), drawn)


angles = Sampler(fit, sample, parameters=AngleCopula)
"""Each angle is distributed as in the embeddings; a Gaussian copula joins them.

It has no log_prob: angles beyond the outermost quantiles are drawn at those quantiles, which thus
have positive probability, so there is no density.
"""
