"""A trained model -> one dictionary of numbers, and the arrays that the figures are drawn from."""

import importlib.util
from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hsjax import data, training
from hsjax.errors import UserError
from hsjax.inference import (
    Inference,
    decode,
    embed,
    mean_squared_error,
    squared_errors,
    whole_batch,
)
from hsjax.metrics import features, generation, latents, neighbours, ood, topology
from hsjax.samplers import slerp
from hsjax.sampling import Sampling, keys

PICTURED = 64  # images in each panel of a figure
LARGEST = 10_000  # images in the one batch for the regulariser
BANK = 60_000  # training images that samples are compared with


class Embedded(NamedTuple):
    """The argument of latent metrics: the posteriors' means, and labels if they are of use."""

    config: ConfigDict
    train: np.ndarray  # [count, n]
    train_labels: np.ndarray | None  # [count]
    test: np.ndarray  # [m, n]
    test_labels: np.ndarray | None  # [m]


_Found = tuple[dict[str, Any], dict[str, np.ndarray]]  # numbers for metrics.json, arrays by name


def knn(embedded: Embedded) -> _Found:
    """k-NN accuracy of the test latents among the training latents."""
    if embedded.train_labels is None:
        return {}, {}
    k = min(embedded.config.evaluate.neighbours, len(embedded.train))
    accuracy = neighbours.knn_accuracy(*embedded[1:], k)
    return {"knn_neighbours": k, "knn_accuracy": accuracy}, {}


def probe(embedded: Embedded) -> _Found:
    """Accuracy of a linear classifier of the training latents on the test latents."""
    if embedded.train_labels is None:
        return {}, {}
    return {"linear_probe_accuracy": neighbours.linear_probe_accuracy(*embedded[1:])}, {}


def describe(embedded: Embedded) -> _Found:
    """All of `latents.diagnostics`, and the latents on a sphere."""
    numbers, arrays = latents.diagnostics(embedded.test, embedded.test_labels)
    if embedded.test.shape[1] >= 3:
        arrays["groups"] = latents.groups(embedded.test[:10_000])
    return {"latents": numbers}, arrays


def tsne(embedded: Embedded) -> _Found:
    """At most 5,000 test latents in the plane."""
    return {}, {"tsne": latents.tsne(embedded.test[:5_000])}


def geometry(embedded: Embedded) -> _Found:
    """All of `latents.geometry`."""
    return {"geometry": latents.geometry(embedded.test)}, {}


LATENT_METRICS: dict[str, Callable[[Embedded], _Found]] = {
    "knn": knn,
    "probe": probe,
    "latents": describe,
    "tsne": tsne,
    "geometry": geometry,
}
# Metrics of the test latents and of each sampler's, by name.
DRAWN_METRICS: dict[str, Callable] = {"topology": topology.topology}
METRICS: ChainMap[str, Callable] = ChainMap(
    {"ood": ood.detection},
    LATENT_METRICS,  # type: ignore[arg-type]
    DRAWN_METRICS,
    generation.METRICS,  # type: ignore[arg-type]
)


class Outside(NamedTuple):
    """Images out of distribution, which the metric `ood` compares with the test images."""

    name: str  # of what they show
    images: np.ndarray  # uint8 [count, H, W, C], as the model takes them


class Evaluation(NamedTuple):
    """The results of `evaluate`."""

    numbers: dict  # by name, as metrics.json holds them
    arrays: dict[str, np.ndarray]  # as embeddings.npz holds them: of the latents, and the panels
    panels: dict[str, np.ndarray]  # uint8 images by title
    interpolations: np.ndarray  # uint8 [rows, columns, H, W, C]
    posteriors: dict[str, Any]  # of the images of the splits "train" and "test"


def feature_networks(
    config: ConfigDict, dataset: data.Dataset, say: Callable[[str], None] = lambda text: None
) -> list[features.FeatureNetwork]:
    """Those that evaluate.features names: one for each of evaluate.feature_seeds, or Inception's.

    Random networks replace classifiers if the labels of a set can't train one.

    Raises:
      UserError: no usable weights for Inception.
    """
    wanted = config.evaluate
    if wanted.features == "none":
        return []
    if wanted.features == "inception":
        return [features.inception(wanted.inception_weights)]
    if wanted.features == "random" or features.lacking(dataset):
        shape = dataset.train_images.shape[1:]
        return [features.random(shape, seed=seed) for seed in wanted.feature_seeds]
    return [
        features.classifier(dataset, seed=seed, steps=wanted.feature_steps, say=say)
        for seed in wanted.feature_seeds
    ]


def check(config: ConfigDict, dataset: data.Dataset) -> None:
    """Check, before a long training, for what would make the evaluation fail after it.

    Raises:
      UserError: no usable weights for Inception, or images that it can't take; no gudhi for the
        metric "topology", or too few images.
    """
    if "topology" in config.evaluate.metrics:
        if not importlib.util.find_spec("gudhi"):
            raise UserError(
                "the metric topology: gudhi is not installed: in a clone, pip install '.[topology]'"
            )
        count = min(config.sample.count, len(dataset.test_images))
        if count < topology.LEAST:
            raise UserError(
                f"the metric topology needs {topology.LEAST} test images and samples, and there "
                f"are {count}: leave it out of evaluate.metrics"
            )
    if config.evaluate.features == "inception":
        (network,) = feature_networks(config, dataset)
        try:
            network.extract(dataset.test_images[:0])
        except ValueError as error:
            raise UserError(f"evaluate.features=inception can't take this set: {error}") from error


def outside(config: ConfigDict, dataset: data.Dataset, left_out: np.ndarray) -> dict[str, Outside]:
    """Images for the metric `ood`, if it is among the metrics, by the field that names them.

    Args:
      config: of the run.
      dataset: of the run.
      left_out: images of the classes that were left out.

    Raises:
      UserError: no field names images, or they are missing or can't be used.
    """
    found: dict[str, Outside] = {}
    classes, name = config.data.leave_out, config.evaluate.ood_data
    if "ood" not in config.evaluate.metrics:
        return found
    if not (classes or name):
        raise UserError(
            "evaluate.metrics has ood, which needs images out of distribution: "
            "set data.leave_out or evaluate.ood_data"
        )
    if classes:
        told = f"{dataset.name}, class{'es' * (len(classes) > 1)} {', '.join(map(str, classes))}"
        if not len(left_out):
            raise UserError(
                f"{told}: the {config.evaluate.split} split has no such image for ood: "
                "set evaluate.ood_data instead, or leave ood out of evaluate.metrics"
            )
        found["leave_out"] = Outside(told, left_out)
    if name:
        split = "train_images" if config.evaluate.split == "validation" else "test_images"
        images = getattr(data.of_config(config.data, name), split)
        try:
            images = data.fitted(images, dataset.train_images.shape[1:])
        except ValueError as error:
            raise UserError(f"evaluate.ood_data={name}: {error}: scale them down") from error
        found["ood_data"] = Outside(name, images)
    return found


def evaluate(
    config: ConfigDict,
    setup: training.Setup,
    inference: Inference,
    state: training.TrainState,
    dataset: data.Dataset,
    say: Callable[[str], None] = lambda text: None,
    kept: Path | None = None,
    others: Mapping[str, Outside] = {},
) -> Evaluation:
    """Judge a state on the test split.

    Reconstructions are decoded from the posteriors' means; the error is given once more for a
    sampled z, as in training. The terms of the regulariser take the test split as their batch, or
    its first 10,000 images. Samples are decoded, rounded to uint8 and compared with as many test
    images and their reconstructions.

    Args:
      config: of the run; its `sample` and `evaluate` fields say what is judged.
      setup: of the run.
      inference: of the run.
      state: to be judged, on every device of this process.
      dataset: of the run.
      say: told what is being done.
      kept: folder where fits of samplers are kept, for later samples of the state.
      others: what `outside` found.

    Raises:
      UserError: a feature network that can't be had, outputs that are not finite, or a folder that
        can't be written.
    """
    batch_size = whole_batch(config.train.batch_size)
    encoded = partial(embed, inference, state, batch_size=batch_size)
    decoded = partial(decode, inference, state, batch_size=batch_size)
    noise_key, sample_key = keys(config.seed)
    images, labels = dataset.test_images, dataset.test_labels
    count = min(config.sample.count, len(images))

    say(f"encoding {len(images)} {config.evaluate.split} images")
    test = encoded(images)
    numbers: dict[str, Any] = {}
    numbers |= {"epoch": int(state.step) // setup.steps, "test_images": len(images)}
    numbers |= _errors(setup, inference, state, images, test, noise_key, batch_size)
    first, some = jax.tree.map(lambda x: x[:LARGEST], (test, (images, labels)))
    terms = inference.terms(state, first, noise_key, *some)
    numbers["regulariser"] = float(terms.pop("regulariser"))
    numbers["terms"] = {name: float(value) for name, value in terms.items()}
    numbers |= {name: config.evaluate[name] for name in ("split", "batch_norm", "latent_scale")}

    say(f"encoding {len(dataset.train_images)} training images")
    bank = encoded(dataset.train_images)
    found, arrays = _of_latents(config, dataset, bank.mean, test.mean, say)
    numbers |= found
    if others:
        squared = partial(squared_errors, inference, state, batch_size=batch_size)
        found, more = _of_outside(bank.mean, images, test.mean, others, encoded, squared, say)
        numbers, arrays = numbers | found, arrays | more

    sampling = Sampling(
        config,
        inference,
        state,
        lambda: bank if config.sample.fit_split == "train" else test,
        {"encode": encoded, "decode": decoded, "say": say},
        batch_size=config.train.batch_size,
        folder=kept,
    )
    names = dict.fromkeys((config.sample.sampler, *config.evaluate.samplers))
    drawn = {name: sampling.latents(name, sample_key, count) for name in names}
    say(f"decoding {len(drawn)} x {count} samples")
    samples = {name: decoded(z) for name, z in drawn.items()}
    projects = config.model.project or setup.method.project
    numbers |= _of_draws(config, projects, {"embeddings": test.mean, **drawn}, say)
    if sampling.reports:
        numbers["fits"] = sampling.reports

    reconstructions = decoded(test.mean[:count])
    numbers["notes"] = _notes(config, dataset, count, batch_size)
    numbers["notes"] += _of_method(setup, config, numbers["terms"])
    if _compares_images(config):
        chosen = np.random.default_rng(config.seed).permutation(len(bank.mean))[:count]
        sets = generation.Sets(
            test=images[:count],
            reconstructions=reconstructions,
            train_reconstructions=decoded(bank.mean[chosen]),
            samples=samples,
            train=_bank(config, dataset),
        )
        numbers |= {"sample_count": count, "fit_split": config.sample.fit_split}
        numbers["generation"], notes = _of_images(config, dataset, sets, say)
        numbers["notes"] += notes

    panels = {"test images": images, "reconstructions": reconstructions}
    panels |= {f"samples: {name}": s for name, s in samples.items()}
    panels = {title: some[:PICTURED] for title, some in panels.items()}
    between = _interpolations(test.mean, decoded)
    posteriors = {"train": bank, "test": test}
    return Evaluation(numbers, arrays | panels, panels, between, posteriors)


def _of_latents(config, dataset, bank, test, say) -> _Found:
    """The latent metrics of the means of both splits."""
    arrays = {"test_mean": np.asarray(test)}
    if dataset.test_labels is not None:
        arrays["test_labels"] = dataset.test_labels
    taught = dataset.train_labels, dataset.test_labels
    if features.lacking(dataset):
        taught = None, None
    embedded = Embedded(config, bank, taught[0], test, taught[1])
    numbers: dict[str, Any] = {}
    for name in (name for name in LATENT_METRICS if name in config.evaluate.metrics):
        say(f"latents: {name}")
        found, described = LATENT_METRICS[name](embedded)
        numbers, arrays = numbers | found, arrays | described
    return numbers, arrays


def _of_outside(bank, images, means, others, encoded, squared, say) -> _Found:
    """How well each score separates the images from others, and all scores."""

    def scored(images, means):
        seen = ood.Encoded(bank, means, squared(images, means))
        return {name: score(seen) for name, score in ood.SCORES.items()}

    say("scores of how unusual images are")
    inside, found = scored(images, means), {}
    arrays = {f"ood_test_{name}": scores for name, scores in inside.items()}
    for source, (told, those) in others.items():
        say(f"scores of {told}")
        scores = scored(those, encoded(those).mean)
        found[source] = {"name": told, "images": len(those)}
        found[source] |= {name: ood.detection(inside[name], scores[name]) for name in scores}
        arrays |= {f"ood_{source}_{name}": array for name, array in scores.items()}
    return {"ood": found}, arrays


def _of_draws(config, projects, drawn, say) -> dict[str, dict]:
    """The metrics `DRAWN_METRICS` of the test means and of each sampler's latents."""
    numbers: dict[str, dict] = {}
    for metric in (name for name in DRAWN_METRICS if name in config.evaluate.metrics):
        numbers[metric] = {}
        for name, z in drawn.items():
            say(f"{metric}: {name}")
            numbers[metric][name] = DRAWN_METRICS[metric](z, config.seed, angular=projects)
    return numbers


def _of_images(config, dataset, sets, say) -> tuple[list[dict], list[str]]:
    """The numbers of each feature network for the samples, and notes for the reader."""
    rows, notes = [], []
    if (fewer := len(sets.train_reconstructions)) < len(sets.test):
        notes.append(f"only {fewer} training images are reconstructed for comparison")
    for network in feature_networks(config, dataset, say):
        notes += features.doubts(network, dataset)
        rows.append(generation.judge(network, sets, config.evaluate.metrics, say))
    notes += dict.fromkeys(note for row in rows for note in row.pop("notes"))
    return rows, notes


def _interpolations(means, decoded) -> np.ndarray:
    """Images on the way between pairs of the first latents, uint8 [rows, 10, H, W, C]."""
    pairs = np.arange(min(16, len(means) // 2 * 2)).reshape(-1, 2)
    steps = jnp.linspace(0.0, 1.0, 10, dtype=jnp.float32)
    between = decoded(np.concatenate([slerp(means[a], means[b], steps) for a, b in pairs]))
    return between.reshape(len(pairs), 10, *between.shape[1:])


def _errors(setup, inference, state, images, test, key, batch_size) -> dict[str, float]:
    """The reconstruction error of the means, and of a sample."""
    mse, mse_sampled = (
        mean_squared_error(inference, state, images, z, batch_size)
        for z in (test.mean, jax.jit(type(test).sample)(test, key))
    )
    return {
        "mse_sum": mse,
        "mse_per_value_x1000": 1000.0 * mse / int(np.prod(setup.shape)),
        "mse_sum_sampled_z": mse_sampled,
    }


def _bank(config, dataset) -> np.ndarray | None:
    """Training images that samples are compared with: all, or some at random."""
    images = dataset.train_images
    if "memorisation" not in config.evaluate.metrics:
        return None
    if len(images) > BANK:
        images = images[np.sort(np.random.default_rng(0).permutation(len(images))[:BANK])]
    return np.asarray(images)


def _of_method(setup, config, terms) -> list[str]:
    """The method's notes on its terms."""
    fields = {name: value for name, value in config.method.items() if name != "name"}
    hyper = setup.method.hyper(config.model.latent_dim, **fields)
    return setup.method.notes(hyper, terms)


def _compares_images(config) -> bool:
    wanted = config.evaluate
    return wanted.features != "none" and any(name in wanted.metrics for name in generation.METRICS)


def _notes(config, dataset, count, batch_size) -> list[str]:
    """What a reader of the numbers must know."""
    wanted, lacks, notes = config.evaluate, features.lacking(dataset), []
    if wanted.split == "validation":
        notes.append("'test' means the images held out of training here")
    if wanted.latent_scale != 1.0:
        notes.append(f"every latent is multiplied by {wanted.latent_scale:g} before it is decoded")
    if wanted.batch_norm == "batch":
        notes.append(f"BatchNorm takes the statistics of each batch of {batch_size} that is judged")
        if "ood" in wanted.metrics:
            notes.append(
                "so a score of ood depends on the other images of a batch, which are all in "
                "distribution or all out of it: judge with evaluate.batch_norm=running, too"
            )
    if config.data.leave_out:
        classes = ", ".join(map(str, config.data.leave_out))
        notes.append(f"left out of all images, and of the feature network's training: {classes}")
    if lacks:
        need = "k-NN accuracy and linear probe"
        if dataset.test_labels is None:
            need = "k-NN accuracy, linear probe and colours"
        notes.append(f"{lacks}: {need} are left out")
    if count < config.sample.count:
        notes.append(f"{count} samples, as many as there are {wanted.split} images")
    if wanted.features == "classifier" and lacks and _compares_images(config):
        notes.append(
            f"{lacks} to train a feature network with: images are judged by one of random "
            "weights, FD[random-conv]; evaluate.features=inception gives FID"
        )
    return notes
