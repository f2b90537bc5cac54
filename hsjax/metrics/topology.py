"""Do the latents have holes or gaps? Persistent homology, compared with that of a Gaussian.

A Rips complex joins points that are nearer than a growing length. Components that join (H0)
and loops that open and close (H1) have lifetimes. In high dimension a Gaussian already has hundreds
of short loops, so only the ratio to a Gaussian of the same mean and covariance says anything.
Lengths are in units of the median distance between points. Gudhi computes the diagrams.
"""

import numpy as np

from hsjax.metrics.frechet import finite_rows, moments
from hsjax.metrics.latents import unit_rows

LEAST = 4  # latents, so that a subsample has two
READING = {
    "h0_total": "sum of the lifetimes of components: below 1 clumps, above 1 evener than chance",
    "h1_longest": "lifetime of the most persistent loop: above 1 a hole",
    "h1_total": "sum of the lifetimes of loops: below 1 fewer or smaller than by chance",
}
"""How to read the ratio of each number to that of a Gaussian, by name."""


def persistence(distances) -> dict[str, float]:
    """The numbers that `READING` explains, of one set of points.

    The total of H0 is the length of the minimum spanning tree.

    Args:
      distances: between points, [count, count], symmetric; in any unit.

    Returns:
      Lifetimes by name, in the same unit; 0 where there is no loop.

    Raises:
      ModuleNotFoundError: gudhi is not installed.
    """
    from gudhi.sklearn.rips_persistence import RipsPersistence  # seconds to import

    rips = RipsPersistence(homology_dimensions=(0, 1), input_type="full distance matrix")
    ((components, loops),) = rips.fit_transform([np.asarray(distances, np.float64)])
    # The last component never joins another.
    components, loops = (d[np.isfinite(d[:, 1])] @ [-1.0, 1.0] for d in (components, loops))
    found = components.sum(), loops.max(initial=0.0), loops.sum()
    return dict(zip(READING, map(float, found), strict=True))


@np.errstate(under="ignore")
def topology(
    latents, seed: int = 0, *, angular: bool = False, subsamples: int = 5, size: int = 250
) -> dict:
    """Persistence of latents relative to that of a Gaussian with their mean and covariance.

    Random subsamples of latents, without replacement, are compared with as many Gaussian points.

    Args:
      latents: [count, n], `LEAST` or more.
      seed: of the subsamples and of the Gaussian.
      angular: project latents and Gaussian points to a sphere, and measure distances as angles; for
        models that project. Otherwise distances are Euclidean.
      subsamples: number of subsamples, at least 2.
      size: points per subsample, at most half of the latents. Uniform directions of R^128 take 2 s
        at 250 points, more than a minute at 500.

    Returns:
      "points", the size of a subsample, and for each name in `READING` a dictionary: mean, spread
      (standard deviation over the subsamples), null_mean and null_spread of the Gaussian, ratio of
      the means, ratio_spread. The last two are None where a Gaussian's number is 0.

    Raises:
      ValueError: a NaN or an infinity, another shape, or too few latents.
      ModuleNotFoundError: gudhi is not installed.
    """
    points = finite_rows(latents, "the latents").astype(np.float64)
    if len(points) < LEAST:
        raise ValueError(f"needs {LEAST} latents at least, got {len(points)}")
    points = unit_rows(points) if angular else points
    size = min(size, len(points) // 2)
    mean, covariance, _ = moments(points)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    generator = np.random.default_rng(seed)
    ours, null = [], []
    for _ in range(subsamples):
        some = generator.choice(points, size, replace=False)
        drawn = mean + generator.standard_normal((size, len(mean))) @ root.T
        drawn = unit_rows(drawn) if angular else drawn
        ours.append(persistence(_distances(some, angular)))
        null.append(persistence(_distances(drawn, angular)))
    compared = {
        name: _compared(*(np.array([row[name] for row in rows]) for rows in (ours, null)))
        for name in READING
    }
    return {"points": size, **compared}


def _compared(ours: np.ndarray, null: np.ndarray) -> dict[str, float | None]:
    """Numbers of subsamples beside those of Gaussian points."""
    found: dict[str, float | None] = {}
    for name, values in (("", ours), ("null_", null)):
        found |= {f"{name}mean": float(values.mean()), f"{name}spread": float(values.std(ddof=1))}
    if not null.all():
        return found | {"ratio": None, "ratio_spread": None}
    spread = (ours / null).std(ddof=1)
    return found | {"ratio": float(ours.mean() / null.mean()), "ratio_spread": float(spread)}


def _distances(points, angular) -> np.ndarray:
    """Between all pairs, [count, count], over their median; angles between unit vectors."""
    from scipy.spatial.distance import pdist, squareform

    distances = pdist(points)
    if angular:  # by the chord, which has digits where the cosine is near 1
        distances = 2.0 * np.arcsin(np.minimum(distances / 2.0, 1.0))
    return squareform(distances / (np.median(distances) or 1.0))
