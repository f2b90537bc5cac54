"""Do the samples look real, and do they cover all that is real? Four shares from neighbours.

Each set is described by balls around its members, with the distance to the k-th neighbour in the
set as radius. Precision and recall (Kynkäänniemi et al., 2019) ask whether a sample lies in a real
ball, and a real image in a sample's; density and coverage (Naeem et al., 2020) count only real
balls, which outliers among the samples can't enlarge.
"""

from typing import NamedTuple

import numpy as np

from hsjax.metrics.frechet import finite_rows

_ROWS = 256  # compared with all others at a time: 20 MB of distances for 10,000


class Shares(NamedTuple):
    """Each is best at 1; only sets of equal counts and the same k are comparable."""

    precision: float  # share of the samples inside some real ball
    recall: float  # share of the real ones inside some sample's ball
    density: float  # real balls that a sample lies in, over k; may exceed 1
    coverage: float  # share of real balls that hold a sample


@np.errstate(under="ignore")
def radii(features, k: int = 5) -> np.ndarray:
    """Distance from each of the features [count, d] to its k-th nearest other one: [count] float64.

    Raises:
      ValueError: a NaN or an infinity, or not 1 <= k < count.
    """
    (x,), scale = _scaled(features)
    return scale * np.sqrt(_nearest(x, k))


@np.errstate(under="ignore")
def precision_recall_density_coverage(real, fake, k: int = 5, real_radii=None) -> Shares:
    """How two sets of features cover one another.

    As in Naeem et al.'s package prdc, what lies on the surface of a ball is outside, so that a set
    without duplicates has a density of 1 against itself. Unlike there, a duplicate of a ball's
    centre is inside even if the radius is 0. Distances are as exact as float64.

    Args:
      real: features [count, d].
      fake: features [m, d] of the same network.
      k: which neighbour bounds a ball.
      real_radii: `radii(real, k)`, to compute them once for several fake sets; None computes them.

    Returns:
      Four shares.

    Raises:
      ValueError: a NaN or an infinity, different d, not 1 <= k < count and m, or real_radii that
        are not [count].
    """
    real, fake = finite_rows(real), finite_rows(fake)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"{real.shape[1]} and {fake.shape[1]} features do not compare")
    (x, y), scale = _scaled(real, fake)
    real_squares = _nearest(x, k) if real_radii is None else (np.asarray(real_radii) / scale) ** 2
    if real_squares.shape != (len(real),):
        raise ValueError(f"{len(real)} samples have radii of shape {real_squares.shape}")
    fake_squares = _nearest(y, k)

    balls, covered, recalled = np.zeros(len(y), int), 0, 0  # balls: real ones around each fake
    for block, distances, error in _squares(x, y):
        inside = _inside(x[block], y, distances, error, real_squares[block, None])
        balls += inside.sum(axis=0)
        covered += inside.any(axis=1).sum()
        recalled += _inside(x[block], y, distances, error, fake_squares).any(axis=1).sum()
    return Shares(
        precision=float(np.mean(balls > 0)),
        recall=float(recalled / len(x)),
        density=float(np.mean(balls) / k),
        coverage=float(covered / len(x)),
    )


def _scaled(*sets) -> tuple[list[np.ndarray], float]:
    """Sets in float64, centred on the first one's mean and divided by a power of two above all.

    So equal rows stay equal, and distances between rows don't depend on the other sets.
    """
    wide = [finite_rows(x).astype(np.float64) for x in sets]
    centred = [x - wide[0].mean(axis=0) for x in wide]
    scale = 2.0 ** np.frexp(max(np.abs(x).max(initial=0.0) for x in centred))[1]
    return [x / scale for x in centred], float(scale)


def _squares(x, y):
    """Squared distances by matrix products, and a bound on their error, in blocks of x."""
    norms = np.sum(y * y, axis=1)
    for start in range(0, len(x), _ROWS):
        block = slice(start, start + _ROWS)
        sizes = np.sum(x[block] ** 2, axis=1)[:, None]
        distances = (-2.0 * x[block]) @ y.T
        distances += sizes
        distances += norms
        yield block, distances, 1e-13 * (sizes.max() + norms.max())


def _nearest(x, k):
    """Squared distance from each row to its k-th nearest other one."""
    if not 1 <= k < len(x):
        raise ValueError(f"neighbour {k} of {len(x)} samples does not exist")
    count = min(k + 8, len(x))  # itself, and a few more, as rounding may change their order
    squares = np.empty(len(x))
    for block, distances, _ in _squares(x, x):
        near = np.argpartition(distances, count - 1, axis=1)[:, :count]
        exact = np.sum((x[block, None] - x[near]) ** 2, axis=2)
        squares[block] = np.partition(exact, k, axis=1)[:, k]
    return squares


def _inside(x, y, distances, error, squares):
    """Which distances [len(x), len(y)] are below a radius; unclear cases are computed exactly.

    `squares` are the squared radii of either x's or y's balls, so that they broadcast.
    """
    inside = distances < squares - error
    unsure = np.flatnonzero(inside ^ (distances <= squares + error))
    squares = np.broadcast_to(squares, inside.shape)
    for some in np.array_split(unsure, 1 + unsure.size * y.shape[1] // 2**24):
        i, j = np.divmod(some, len(y))
        exact = np.sum((x[i] - y[j]) ** 2, axis=1)
        # The radius is a rounded distance to a sample, which must count as outside.
        inside[i, j] = (exact < (1 - 1e-12) * squares[i, j]) | (exact == 0)
    return inside
