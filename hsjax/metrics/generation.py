"""Are the samples like the data? All distances between sets of images over one feature network."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from hsjax.errors import UserError
from hsjax.metrics.features import FeatureNetwork
from hsjax.metrics.frechet import finite_rows, frechet_distance, moments, rank_note
from hsjax.metrics.kid import kernel_distance
from hsjax.metrics.prdc import precision_recall_density_coverage, radii


class Sets(NamedTuple):
    """Equally many uint8 images [count, H, W, C] of each kind: distances of other counts differ."""

    test: np.ndarray
    reconstructions: np.ndarray  # of the test images
    train_reconstructions: np.ndarray  # of training images
    samples: dict[str, np.ndarray]  # by sampler


def judge(
    network: FeatureNetwork,
    sets: Sets,
    metrics: Collection[str],
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Compare every sampler's images with the test images and with their reconstructions.

    A low distance to the reconstructions alone (the paper's self-FD) is no merit: a decoder that
    always gives the same image has 0. So all these stand together:

    * reconstructions_to_test: what decoding costs, without any sampling;
    * train_reconstructions_to_reconstructions: of training to those of test images, a reference
      for the self-FD; samples may well have less;
    * for each sampler `to_test` and `to_reconstructions` (self-FD), the kernel distance to the test
      images and precision, recall, density and coverage of them.

    Args:
      network: what the features are of.
      sets: the images.
      metrics: which of "frechet", "kid", "prdc" to take.
      say: told what is being done.

    Returns:
      Numbers by name, with the network's name, `about`, and `notes`, a list of lines to be shown.

    Raises:
      UserError: features that are not finite.
    """

    def extract(images, what):
        say(f"{network.name}: {what}")
        try:
            return finite_rows(network.extract(images), f"the features of {what}")
        except ValueError as error:
            raise UserError(f"{network.name}: {error}") from error

    test = extract(sets.test, "the test images")
    reconstructions = extract(sets.reconstructions, "their reconstructions")
    train = extract(sets.train_reconstructions, "training images' reconstructions")
    numbers = {"network": network.name, "distance": network.distance, **network.about}
    of_test, of_reconstructions = moments(test), moments(reconstructions)
    if "frechet" in metrics:
        numbers["reconstructions_to_test"] = frechet_distance(of_reconstructions, of_test)
        numbers["train_reconstructions_to_reconstructions"] = frechet_distance(
            moments(train), of_reconstructions
        )
    note = rank_note(of_test, of_reconstructions)
    numbers["notes"] = [note] if note and "frechet" in metrics else []
    k = min(5, len(test) - 1)
    if "prdc" in metrics:
        real_radii = radii(test, k)
    numbers["samplers"] = {}
    for name, images in sets.samples.items():
        samples = extract(images, f"samples of {name}")
        row = numbers["samplers"][name] = {}
        if "frechet" in metrics:
            of_samples = moments(samples)
            row["to_test"] = frechet_distance(of_samples, of_test)
            row["to_reconstructions"] = frechet_distance(of_samples, of_reconstructions)
        if "kid" in metrics:
            row["kid"], row["kid_deviation"] = kernel_distance(samples, test)
        if "prdc" in metrics:
            row |= precision_recall_density_coverage(test, samples, k, real_radii)._asdict()
    return numbers
