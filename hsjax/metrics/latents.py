"""Where on the sphere do the latents lie? Numbers and pictures of the means μ alone.

`diagnostics` gives everything that `READING` explains, a line each.
"""

import jax.numpy as jnp
import numpy as np

from hsjax import coordinates
from hsjax.metrics.frechet import finite_rows

READING = {
    "radius_mean": "mean ‖μ‖; the prior's is near √n",
    "radius_std": "deviation of ‖μ‖ over the data: 0 on a sphere, near 0.7 under the prior",
    "overlap_mean": "mean cosine between two latents: 0 if spread evenly, 1 on a tight island",
    "overlap_std": "its deviation: 1/√n if uniform, larger with clusters or a hierarchy",
    "overlap_within": "mean cosine within a class: above overlap_between if classes cluster",
    "overlap_between": "mean cosine between classes: near 1 if all share one island",
    "log_volume_mean": "log volume element per dimension, nats, minus that of uniform directions",
    "effective_rank": "directions that carry the variance of μ: n if all do, 1 if only one does",
    "cosine_mean": "mean of cos φ_k for each k: 0 at the equator, ±1 at a pole",
    "cosine_spread": "deviation of cos φ_k by k: 1/√(n - k + 1) if uniform, less if compressed",
    "overlap_edges": "bounds of the bins of overlap_counts",
    "overlap_counts": "pairs of latents by cosine: a peak at 0 if uniform, near 1 on an island, "
    "several peaks or a wide range in a hierarchy (as with replica symmetry breaking)",
}
"""How to read each of the diagnostics, by name."""
GEOMETRY = {
    "norm_spread": "deviation of ‖μ‖ over its mean: small on a thin shell",
    "abs_cosine_mean": "mean |cos| between two latents: small if almost orthogonal",
    "abs_cosine_spread": "its deviation",
    "cap_angle": "degrees around the mean direction that hold 95 % of the latents",
    "cap_log10_share": "log10 of the share of the sphere's area within that angle",
}
"""How to read each of the numbers of `geometry`, by name."""


@np.errstate(under="ignore")
def diagnostics(mean, labels=None) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The numbers and arrays that `READING` explains, of latent means.

    Overlaps are of all pairs among at most 3000 latents, a fixed choice for each count.

    Args:
      mean: μ, [count, n], n >= 2.
      labels: integers [count], or None: overlap_within and overlap_between are then left out. So is
        either of them if it has no pair.

    Returns:
      Numbers by name, and arrays by name (cosine_mean [n - 1], cosine_spread [n - 1], overlap_edges
      [201], overlap_counts [200]).

    Raises:
      ValueError: a NaN or an infinity, fewer than 2 latents, n < 2, or labels that are not [count].
    """
    mean = finite_rows(mean, "the latents")
    if min(mean.shape) < 2:
        raise ValueError(f"needs 2 latents of 2 coordinates at least, got shape {mean.shape}")
    if labels is not None and np.shape(labels) != mean.shape[:1]:
        raise ValueError(f"{len(mean)} latents have labels of shape {np.shape(labels)}")

    # In float64: float32 has few digits, if any, for how far a compressed cosine is from 1.
    squares = mean.astype(np.float64) ** 2
    tails = np.sqrt(np.cumsum(squares[:, ::-1], axis=1)[:, ::-1])
    radii, tails = tails[:, 0], tails[:, :-1]
    cosines = mean[:, :-1] / np.where(tails > 0, tails, 1.0)
    numbers = {"radius_mean": radii.mean(), "radius_std": radii.std()}
    arrays = {"cosine_mean": cosines.mean(axis=0), "cosine_spread": cosines.std(axis=0)}

    chosen = _chosen(len(mean))
    pairs, first, second = overlaps(mean[chosen])
    numbers |= {"overlap_mean": pairs.mean(), "overlap_std": pairs.std()}
    arrays["overlap_counts"], arrays["overlap_edges"] = np.histogram(pairs, 200, (-1.0, 1.0))
    if labels is not None:
        labels = np.asarray(labels)[chosen]
        same = labels[first] == labels[second]
        for name, some in (("overlap_within", same), ("overlap_between", ~same)):
            if some.any():
                numbers[name] = pairs[some].mean()

    numbers["log_volume_mean"] = log_volume_excess(mean)
    numbers["effective_rank"] = effective_rank(mean)
    return {name: float(value) for name, value in numbers.items()}, arrays


@np.errstate(under="ignore")
def geometry(mean) -> dict[str, dict[str, float]]:
    """The paper's properties of a high-dimensional Gaussian (1.2 to 1.4), for latents and N(0, I).

    A Gaussian's norm is concentrated, two of its samples are almost orthogonal, and no direction is
    preferred. The numbers of N(0, I) are exact, for infinitely many samples. Cosines are those of
    `diagnostics`. A cap of less than 1e-7 rad counts as one of 1e-7, the rounding of float32.

    Args:
      mean: μ, [count, n], n >= 2.

    Returns:
      The numbers that `GEOMETRY` explains: {"embeddings": {name: number}, "normal": of N(0, I)}.

    Raises:
      ValueError: a NaN or an infinity, fewer than 2 latents, or n < 2.
    """
    from scipy.special import betaincinv, poch

    mean = finite_rows(mean, "the latents").astype(np.float64)
    if min(mean.shape) < 2:
        raise ValueError(f"needs 2 latents of 2 coordinates at least, got shape {mean.shape}")
    n = mean.shape[1]
    radii = np.linalg.norm(mean, axis=1)
    cosines = np.abs(overlaps(mean[_chosen(len(mean))])[0])
    units = unit_rows(mean)
    # From the chord, which is accurate where the cosine is near 1.
    chords = np.linalg.norm(units - unit_rows(units.sum(axis=0, keepdims=True)), axis=1)
    angle = max(2.0 * np.arcsin(min(np.quantile(chords, 0.95) / 2.0, 1.0)), 1e-7)

    typical = np.sqrt(2.0) * poch(n / 2, 0.5)  # E ‖z‖
    orthogonal = 1.0 / (np.sqrt(np.pi) * poch(n / 2, 0.5))  # E |cos|
    cap = np.pi / 2 + np.arcsin(np.sqrt(betaincinv(0.5, (n - 1) / 2, 0.9)))
    rows = {
        "embeddings": (
            *(radii.std() / (radii.mean() or 1.0), cosines.mean(), cosines.std()),
            *(np.degrees(angle), log_cap_share(angle, n) / np.log(10.0)),
        ),
        "normal": (
            *(np.sqrt(n / typical**2 - 1.0), orthogonal, np.sqrt(1.0 / n - orthogonal**2)),
            *(np.degrees(cap), np.log10(0.95)),
        ),
    }
    return {name: dict(zip(GEOMETRY, map(float, row), strict=True)) for name, row in rows.items()}


@np.errstate(under="ignore")
def log_cap_share(angle: float, n: int) -> float:
    """Log of the share of the area of the sphere in R^n that lies within an angle of a point.

    The share is half of I_x((n - 1) / 2, 1/2) with x = sin² angle (Li, 2011), or beyond 90° one
    minus that. Where it would underflow, a power series gives its logarithm.

    Args:
      angle: in rad, within (0, π].
      n: >= 2.

    Returns:
      Nats, <= 0.
    """
    from scipy.special import betainc, betaln

    a, x = (n - 1) / 2, np.sin(angle) ** 2
    share = betainc(a, 0.5, x)
    if angle > np.pi / 2:
        return float(np.log1p(-share / 2.0))
    if share > 1e-290:
        return float(np.log(share / 2.0))
    # x^a (1-x)^½ / (a B(a, ½)) times Σ (a+½)_k / (a+1)_k x^k, whose terms fall faster than x^k.
    k = np.arange(int(40.0 / -np.log(x)) + 1)
    series = 1.0 + np.cumprod(x * (a + 0.5 + k) / (a + 1.0 + k)).sum()
    log_front = a * np.log(x) + np.log(np.cos(angle)) - np.log(a) - betaln(a, 0.5)
    return float(log_front + np.log(series) - np.log(2.0))


@np.errstate(under="ignore")
def overlaps(means) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines between all pairs of latents [count, n]; a zero vector's are 0.

    Returns:
      (cosines, first, second), each [count (count - 1) / 2]; the latter two index the latents.
    """
    units = unit_rows(means)
    first, second = np.triu_indices(len(units), 1)
    return np.clip((units @ units.T)[first, second], -1.0, 1.0), first, second


@np.errstate(under="ignore")
def log_volume_excess(means) -> float:
    """Mean log volume element of the directions (A.3), less its mean over uniform directions.

    Both are at the same radius, which cancels. For a uniform direction sin² φ_k is distributed as
    Beta((n - k) / 2, 1/2), whose mean logarithm is a difference of two digammas.

    Args:
      means: [count, n], n >= 2.

    Returns:
      Nats per dimension (of n); 0 at n = 2, where the element is constant.
    """
    from scipy.special import digamma

    _, angles = coordinates.to_spherical(jnp.asarray(means, jnp.float32))
    ours = np.asarray(coordinates.log_volume(jnp.ones(len(angles)), angles), np.float64).mean()
    n = angles.shape[1] + 1
    k = np.arange(1, n - 1)
    uniform = np.sum((n - 1 - k) * 0.5 * (digamma((n - k) / 2) - digamma((n - k + 1) / 2)))
    return float(ours - uniform) / n


@np.errstate(under="ignore")
def effective_rank(means) -> float:
    """exp of the entropy of the shares of variance (Roy and Vetterli, 2007).

    The shares are the eigenvalues of the covariance of means [count, n] over their sum. Between 1
    and n; 0 if all means are equal.
    """
    means = np.asarray(means, np.float64)
    if not np.ptp(means, axis=0).any():
        return 0.0
    values = np.linalg.svd(np.cov(means, rowvar=False), compute_uv=False)
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


@np.errstate(under="ignore")
def groups(means) -> np.ndarray:
    """Latents on S², for a picture: coordinates averaged in three groups, then normalised (4.3).

    The groups are consecutive and the last takes the remainder: 42, 42 and 44 of 128.

    Args:
      means: [count, n], n >= 3.

    Returns:
      Unit vectors [count, 3], float64; where all three averages are 0, the zero vector.

    Raises:
      ValueError: n < 3, or a NaN or an infinity.
    """
    means = finite_rows(means, "the latents")
    n = means.shape[1]
    if n < 3:
        raise ValueError(f"three groups need at least 3 coordinates, got {n}")
    parts = np.split(means, [n // 3, 2 * (n // 3)], axis=1)
    return unit_rows(np.stack([part.mean(axis=1, dtype=np.float64) for part in parts], axis=1))


@np.errstate(under="ignore")
def tsne(means, seed: int = 0) -> np.ndarray:
    """t-SNE in the plane, an illustration only: 50 principal components first, 500 iterations.

    scikit-learn's Barnes-Hut version with a perplexity of 30 (with fewer than 90 points, a third of
    their number), on one thread: the same picture on any number of cores.

    Args:
      means: [count, n], 2 <= count <= 10,000; 10,000 take half a minute.
      seed: of the embedding.

    Returns:
      [count, 2] float32, in no unit; zeros if all means are equal.

    Raises:
      ValueError: too few or too many latents, n < 2, or a NaN or an infinity.
    """
    from sklearn.decomposition import PCA  # a second to import
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    means = finite_rows(means, "the latents").astype(np.float64)
    count, n = means.shape
    if not 2 <= count <= 10_000 or n < 2:
        raise ValueError(f"t-SNE takes 2 to 10,000 latents of n >= 2, got shape {means.shape}")
    if not np.ptp(means, axis=0).any():
        return np.zeros((count, 2), np.float32)
    means = means - means.mean(axis=0)
    means /= np.abs(means).max()
    perplexity = min(30.0, max(1.0, (count - 1) / 3))
    with threadpool_limits(1):
        if n > 50:
            means = PCA(min(50, count), svd_solver="full").fit_transform(means)
        return TSNE(2, perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(means)


def _chosen(count) -> np.ndarray:
    """Which latents the pairs are among: all, or 3000, the same ones every time."""
    if count <= 3000:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, 3000, replace=False))


def unit_rows(x) -> np.ndarray:
    """Rows over their norms in float64; a zero row stays zero."""
    x = np.asarray(x, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1.0)
