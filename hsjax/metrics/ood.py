"""Which images are unlike the training data? Scores of single images, and how well they detect it.

The less an image is like the training data, the higher is each score. `knn_distances` and
`radius_deviations` use the encoder's means μ, before any projection. The first is the score of the
authors' follow-up (https://arxiv.org/abs/2601.18823). The third score in `SCORES` is the squared
error of the reconstruction.

The false positive rate at a true positive rate of 95 % depends on what counts as positive, and both
conventions are in use:

* fpr95_in_positive: images in distribution are positive, as in most of the literature. It is the
  share of the others that pass at a threshold which 95 % of the images in distribution pass.
* fpr95_ood_positive: images out of distribution are positive, as in the follow-up's code. It is the
  share of the images in distribution that are refused at a threshold which refuses 95 % of the
  others.

The follow-up's published 0.232 for CIFAR10 against CIFAR100 is of the second kind; with the first,
the scores that its authors archived give 0.762. Its table compares it with numbers that are usually
of the first kind. AUROC is the same in both.

Example:
  >>> usual, unusual = np.arange(100.0), np.arange(60.0, 360.0, 3.0)
  >>> {name: round(value, 3) for name, value in detection(usual, unusual).items()}
  {'auroc': 0.972, 'fpr95_in_positive': 0.12, 'fpr95_ood_positive': 0.25}
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hsjax.metrics.frechet import finite_rows

NEIGHBOURS = 3  # the follow-up's


class Encoded(NamedTuple):
    """What the scores of images are computed from."""

    bank: np.ndarray  # means of the training images, [count, n]
    means: np.ndarray  # of the images, [m, n]
    errors: np.ndarray  # squared errors of their reconstructions, summed over an image, [m]


@np.errstate(under="ignore")
def knn_distances(bank, queries, k: int = NEIGHBOURS) -> np.ndarray:
    """Mean Euclidean distance of each query to its k nearest neighbours in the bank.

    Matrix products find the neighbours, block by block; their distances come from differences, so
    that of a copy is 0.

    Args:
      bank: [count, n], usually the means of all training images.
      queries: [m, n].
      k: number of neighbours, at most count.

    Returns:
      [m] float64, in the unit of the arguments.

    Raises:
      ValueError: a NaN or an infinity, different n, or not 1 <= k <= count.
    """
    from sklearn.neighbors import NearestNeighbors  # a second to import

    bank, queries = finite_rows(bank, "the bank"), finite_rows(queries, "the queries")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"{bank.shape[1]} and {queries.shape[1]} coordinates do not compare")
    if not 1 <= k <= len(bank):
        raise ValueError(f"neighbour {k} of {len(bank)} latents does not exist")
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    centre = bank.mean(axis=0)
    count = min(k + 8, len(bank))  # a few more, as rounding may change their order
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(bank - centre)
    near = search.kneighbors(queries - centre, return_distance=False)
    distances = [np.linalg.norm(queries - bank[column], axis=1) for column in near.T]
    return np.sort(distances, axis=0)[:k].mean(axis=0)


@np.errstate(under="ignore")
def radius_deviations(bank, queries) -> np.ndarray:
    """How far ‖μ‖ of each query is from the mean radius of the bank, on either side.

    It depends on the method whether ‖μ‖ of unusual images is larger or smaller.

    Args:
      bank: [count, n], usually the means of all training images.
      queries: [m, n].

    Returns:
      [m] float64, in the unit of the arguments.

    Raises:
      ValueError: a NaN or an infinity.
    """
    bank, queries = finite_rows(bank, "the bank"), finite_rows(queries, "the queries")
    radii = (np.linalg.norm(x.astype(np.float64), axis=1) for x in (bank, queries))
    return np.abs(np.mean(next(radii)) - next(radii))


SCORES: dict[str, Callable[[Encoded], np.ndarray]] = {
    "knn": lambda e: knn_distances(e.bank, e.means, min(NEIGHBOURS, len(e.bank))),
    "radius": lambda e: radius_deviations(e.bank, e.means),
    "error": lambda e: np.asarray(e.errors, np.float64),
}
"""Each gives a score for each image, [m]: the higher, the less like the training data."""


def roc(negative, positive) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve of an alarm for scores at or above a threshold, over all thresholds.

    Args:
      negative: scores [count] of what should cause no alarm.
      positive: scores [m] of what should.

    Returns:
      (false positive rates, true positive rates), each [points] float64, from 0 to 1 and ascending.

    Raises:
      ValueError: no scores, another shape, or a NaN or an infinity.
    """
    negative, positive = np.sort(_checked(negative)), np.sort(_checked(positive))
    thresholds = np.unique(np.concatenate([negative, positive]))[::-1]
    above = (len(x) - np.searchsorted(x, thresholds) for x in (negative, positive))
    false, true = (np.concatenate([[0], count]) / count[-1] for count in above)
    return false, true


def auroc(inside, outside) -> float:
    """Area under the ROC curve: how often an outside score is above an inside score.

    Args:
      inside: scores [count] of images in distribution.
      outside: scores [m] of images out of distribution.

    Returns:
      The share of pairs, in [0, 1]; a tie counts as one half.

    Raises:
      ValueError: as `roc`.
    """
    inside, outside = np.sort(_checked(inside)), _checked(outside)
    doubled = sum(np.searchsorted(inside, outside, side).sum() for side in ("left", "right"))
    return float(doubled / (2 * len(inside) * len(outside)))


def false_positive_rate(negative, positive, true_positive_rate: float = 0.95) -> float:
    """The lowest false positive rate at which the ROC curve has this true positive rate.

    Points of the curve are joined by straight lines, as in the follow-up. So the rate may lie
    between those of two thresholds.

    Args:
      negative: scores [count] of what should cause no alarm.
      positive: scores [m] of what should.
      true_positive_rate: above 0, at most 1.

    Returns:
      A fraction in [0, 1].

    Raises:
      ValueError: as `roc`.
    """
    false, true = roc(negative, positive)
    i = int(np.argmax(true >= true_positive_rate))  # the first; true[0] is 0
    share = (true_positive_rate - true[i - 1]) / (true[i] - true[i - 1])
    return float(false[i - 1] + share * (false[i] - false[i - 1]))


def detection(inside, outside) -> dict[str, float]:
    """How well a score separates images out of distribution from those in distribution.

    Args:
      inside: scores [count] of images in distribution.
      outside: scores [m] of images out of distribution, which should be higher.

    Returns:
      auroc, fpr95_in_positive and fpr95_ood_positive, see above; best at 1, 0 and 0.

    Raises:
      ValueError: as `roc`.
    """
    inside, outside = _checked(inside), _checked(outside)
    return {
        "auroc": auroc(inside, outside),
        "fpr95_in_positive": false_positive_rate(-outside, -inside),
        "fpr95_ood_positive": false_positive_rate(inside, outside),
    }


def _checked(scores) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"scores must be [count], one or more, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.sum(~np.isfinite(scores))} of {scores.size} scores are not finite")
    return scores
