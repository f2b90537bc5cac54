"""Do the samples look real, and is all that is real among them? Four shares from neighbours.

A set is taken as the union of balls around its members, each as wide as the distance to the k-th
neighbour in the set. Precision and recall (Kynkäänniemi et al., 2019) ask whether a sample lies in
the real union and a real one in the samples'; density and coverage (Naeem et al., 2020) count real
balls instead, which outliers among the samples can't inflate.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsjax.metrics.frechet import finite_rows

_ROWS = 512  # held against all others at a time: 20 MB of distances for 10,000


class Shares(NamedTuple):
    """Each is best at 1; only sets of equal counts and the same k compare."""

    precision: float  # share of the samples inside some real ball
    recall: float  # share of the real ones inside some sample's ball
    density: float  # real balls that a sample lies in, over k; may exceed 1
    coverage: float  # share of real balls that hold a sample


def radii(features, k: int = 5) -> np.ndarray:
    """Distance from each of the features [count, d] to its k-th nearest other one: [count] float64.

    Raises:
      ValueError: a NaN or an infinity, or not 1 <= k < count.
    """
    features = finite_rows(features)
    if not 1 <= k < len(features):
        raise ValueError(f"neighbour {k} of {len(features)} samples does not exist")
    (x,), scale = _scaled(features)
    # One more: itself. The slice is taken here, as XLA would turn a jitted one into a full sort.
    square = np.asarray(_smallest_squares(x, k + 1))[:, -1]
    return scale * np.sqrt(np.maximum(square, 0.0, dtype=np.float64))


def precision_recall_density_coverage(real, fake, k: int = 5, real_radii=None) -> Shares:
    """How two sets of features cover one another.

    Distances are float32 with a tolerance of its rounding error, so duplicates are neighbours.

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
    real_radii = radii(real, k) if real_radii is None else np.asarray(real_radii)
    if real_radii.shape != (len(real),):
        raise ValueError(f"{len(real)} samples have radii of shape {real_radii.shape}")
    fake_radii = radii(fake, k)

    (x, y), scale = _scaled(real, fake)
    r, s = (((v / scale) ** 2).astype(np.float32) for v in (real_radii, fake_radii))
    balls, _ = jax.device_get(_inside(y, s, x, r))  # of the real ones, around each fake
    fake_balls, fakes = jax.device_get(_inside(x, r, y, s))
    return Shares(
        precision=float(np.mean(balls > 0)),
        recall=float(np.mean(fake_balls > 0)),
        density=float(np.mean(balls) / k),
        coverage=float(np.mean(fakes > 0)),
    )


def _scaled(*sets) -> tuple[list[np.ndarray], float]:
    """Sets in float32 around the first one's mean, in units of their largest coordinate."""
    mean = sets[0].mean(axis=0, dtype=np.float64)
    centred = [x - mean for x in sets]
    scale = max(np.abs(x).max(initial=0.0) for x in centred) or 1.0
    return [(x / scale).astype(np.float32) for x in centred], float(scale)


def _squares(x, norms, point):
    """Squared distances from a point [d] to all x [count, d], and their rounding errors."""
    sizes = jnp.sum(point * point) + norms
    # Mapped over points, this order is a product of matrices and twice as fast as x @ point.
    products = jnp.matmul(point[None], x.T, precision="highest")[0]
    return sizes - 2.0 * products, 1e-6 * sizes


@partial(jax.jit, static_argnums=1)
def _smallest_squares(x, count):
    """The smallest squared distances within x, increasing: [len(x), count]."""
    norms = jnp.sum(x * x, axis=1)

    def row(point):
        return -jax.lax.top_k(-_squares(x, norms, point)[0], count)[0]

    return jax.lax.map(row, x, batch_size=_ROWS)


@jax.jit
def _inside(points, own, centres, squares):
    """For each point: how many centres' balls hold it, and how many centres its own ball holds.

    `own` [points] and `squares` [centres] are the squared radii of their balls.
    """
    norms = jnp.sum(centres * centres, axis=1)

    def row(arguments):
        point, mine = arguments
        distance, error = _squares(centres, norms, point)
        distance -= error
        return jnp.sum(distance <= squares), jnp.sum(distance <= mine)

    return jax.lax.map(row, (points, own), batch_size=_ROWS)
