"""Are the samples like the data? All distances between sets of images over one feature network."""

from collections.abc import Callable, Collection
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hsjax.errors import UserError
from hsjax.metrics.features import FeatureNetwork
from hsjax.metrics.frechet import finite_rows, frechet_distance, moments, rank_note
from hsjax.metrics.kid import kernel_distance
from hsjax.metrics.memorisation import share_nearest_to_training
from hsjax.metrics.prdc import precision_recall_density_coverage, radii

ASKED = 1000  # samples that `memorisation` looks at


class Sets(NamedTuple):
    """Equally many uint8 images [count, H, W, C] of each kind, since distances depend on the count.

    `train` may hold any number.
    """

    test: np.ndarray
    reconstructions: np.ndarray  # of the test images
    train_reconstructions: np.ndarray  # of training images
    samples: dict[str, np.ndarray]  # by sampler
    train: np.ndarray | None = None  # training images, for `memorisation` (None: left out)


class Features:
    """Features of a set of images, [count, d], and what is computed of them once."""

    def __init__(self, values: np.ndarray):
        self.values = values

    @cached_property
    def moments(self):
        """Mean and covariance."""
        return moments(self.values)

    @cached_property
    def radii(self):
        """Distance of each to its k-th nearest other one, [count]."""
        return radii(self.values, self.k)

    @property
    def k(self) -> int:
        """Which neighbour bounds a ball: the fifth."""
        return min(5, len(self.values) - 1)


class Compared(NamedTuple):
    """The argument of metrics of samples."""

    samples: Features
    test: Features
    reconstructions: Features  # of the test images
    train: Features | None  # of the training images, if there are any


def frechet(compared: Compared) -> dict[str, float]:
    """Fréchet distance to the test images and to their reconstructions (self-FD)."""
    mine = compared.samples.moments
    return {
        "to_test": frechet_distance(mine, compared.test.moments),
        "to_reconstructions": frechet_distance(mine, compared.reconstructions.moments),
    }


def kid(compared: Compared) -> dict[str, float]:
    """Kernel distance to the test images."""
    value, deviation = kernel_distance(compared.samples.values, compared.test.values)
    return {"kid": value, "kid_deviation": deviation}


def prdc(compared: Compared) -> dict[str, float]:
    """Precision, recall, density and coverage of the test images."""
    test = compared.test
    return precision_recall_density_coverage(
        test.values, compared.samples.values, test.k, test.radii
    )._asdict()


def memorisation(compared: Compared) -> dict[str, float]:
    """Share of the first 1,000 samples that are nearer to a training image than to a test image."""
    if compared.train is None:
        return {}
    sets = compared.samples.values[:ASKED], compared.train.values, compared.test.values
    return {"nearest_is_training": share_nearest_to_training(*sets)}


METRICS: dict[str, Callable[[Compared], dict[str, float]]] = {
    "frechet": frechet,
    "kid": kid,
    "prdc": prdc,
    "memorisation": memorisation,
}


def judge(
    network: FeatureNetwork,
    sets: Sets,
    metrics: Collection[str],
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Compare every sampler's images with the test images and with their reconstructions.

    A low distance to the reconstructions (the paper's self-FD) proves nothing by itself: a decoder
    that always gives the same image has 0. So these numbers are reported together:

    * reconstructions_to_test: what decoding costs, without any sampling;
    * train_reconstructions_to_reconstructions: distance between reconstructions of training and of
      test images, a reference for the self-FD; samples may well have less;
    * test_nearest_is_training: what `memorisation` gives for the test images themselves;
    * for each sampler, what the functions in METRICS give.

    Args:
      network: computes the features.
      sets: the images.
      metrics: names in METRICS; others are left out.
      say: told what is being done.

    Returns:
      Numbers by name, with the network's name, `about`, and `notes`, a list of lines to be shown.

    Raises:
      UserError: features that are not finite.
    """

    def extract(images, what):
        say(f"{network.name}: {what}")
        try:
            return Features(finite_rows(network.extract(images), f"the features of {what}"))
        except ValueError as error:
            raise UserError(f"{network.name}: {error}") from error

    test = extract(sets.test, "the test images")
    reconstructions = extract(sets.reconstructions, "their reconstructions")
    train = extract(sets.train_reconstructions, "training images' reconstructions")
    numbers = {"network": network.name, "distance": network.distance, **network.about, "notes": []}
    if "frechet" in metrics:
        numbers["reconstructions_to_test"] = frechet_distance(reconstructions.moments, test.moments)
        numbers["train_reconstructions_to_reconstructions"] = frechet_distance(
            train.moments, reconstructions.moments
        )
        note = rank_note(test.moments, reconstructions.moments)
        numbers["notes"] = [note] if note else []
    bank, usual = None, 0.0
    if "memorisation" in metrics and sets.train is not None:
        bank, first = extract(sets.train, "the training images"), test.values[:ASKED]
        usual = share_nearest_to_training(first, bank.values, test.values, are_test=True)
        numbers["test_nearest_is_training"] = usual
    numbers["samplers"] = {}
    for name, images in sets.samples.items():
        samples = extract(images, f"samples of {name}")
        row: dict[str, float] = {}
        for metric in (metric for metric in METRICS if metric in metrics):
            row |= METRICS[metric](Compared(samples, test, reconstructions, bank))
        numbers["samplers"][name] = row
        error = (2 * max(usual * (1 - usual), 0.01) / min(ASKED, len(images))) ** 0.5
        if (share := row.get("nearest_is_training", 0.0)) > usual + 4 * error:
            numbers["notes"].append(
                f"{name} may copy training images: {share:.3f} of its samples are nearer to one "
                f"than to any test image, of the test images themselves {usual:.3f}"
            )
    return numbers
