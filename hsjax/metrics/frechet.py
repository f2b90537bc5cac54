"""How far apart are two sets of features? The Fréchet distance between their Gaussians.

Dowson and Landau (1982); Heusel et al. (2017) for images. It is named after the network that made
the features. Only numbers of the same network and the same count are comparable: the bias falls as
1 / count.
"""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """What the distance needs of a set of features; float64, on the host."""

    mean: np.ndarray  # [d], in the units of the features
    covariance: np.ndarray  # [d, d], unbiased, in their squared units
    count: int  # type: ignore[assignment]  # of samples; shadows a method of tuples


@np.errstate(under="ignore")
def moments(features) -> Moments:
    """Mean and covariance of features [count, d].

    Raises:
      ValueError: a NaN or an infinity, another shape, or fewer than 2 samples.
    """
    features = finite_rows(features)
    count, d = features.shape
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {count}")
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((d, d))
    for start in range(0, count, 4096):  # no second copy of all features in float64
        centred = features[start : start + 4096] - mean
        scatter += centred.T @ centred
    return Moments(mean, scatter / (count - 1), count)


@np.errstate(under="ignore")
def frechet_distance(a: Moments, b: Moments) -> float:
    """‖m_a - m_b‖² + tr(S_a + S_b - 2 (S_a^½ S_b S_a^½)^½), in squared units of the features.

    Eigenvalues below the rounding error of the largest count as 0, so covariances of fewer samples
    than features also work.

    Args:
      a: moments of d features.
      b: moments of d features of the same network.

    Returns:
      The distance, >= 0.

    Raises:
      ValueError: different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"{a.mean.size} and {b.mean.size} features do not compare")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(_clip(values))) @ vectors.T
    product = root @ b.covariance @ root
    overlap = np.sqrt(_clip(np.linalg.eigvalsh(0.5 * (product + product.T)))).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * overlap
    return float(np.sum((a.mean - b.mean) ** 2) + max(spread, 0.0))


def rank_note(a: Moments, b: Moments) -> str | None:
    """A line for the report if a covariance has to be rank-deficient (count <= d), else None."""
    count, d = min(a.count, b.count), a.mean.size
    if count > d:
        return None
    return (
        "the Fréchet distance is of rank-deficient covariances: "
        f"{count:,} samples, {d:,} feature{'s' if d > 1 else ''}"
    )


def finite_rows(features, name: str = "features") -> np.ndarray:
    """Features [count, d] as a NumPy array, or a ValueError that says what is wrong with them."""
    features = np.asarray(features)
    if features.dtype.kind == "V":  # bfloat16, which is none of NumPy's own
        features = features.astype(np.float32)
    if features.ndim != 2:
        raise ValueError(f"{name} must be [count, d], got shape {features.shape}")
    bad = int(np.sum(~np.isfinite(features).all(axis=1)))
    if bad:
        raise ValueError(f"{bad} of {len(features)} rows of {name} hold a NaN or an infinity")
    return features


def _clip(values: np.ndarray) -> np.ndarray:
    """Eigenvalues, with those that are only rounding errors set to 0."""
    noise = values.max() * values.size * np.finfo(np.float64).eps
    return np.where(values > noise, values, 0.0)
