"""A trained model -> one dictionary of numbers, and the arrays that the figures are drawn from."""

import zlib
from collections import ChainMap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hsjax import data, train
from hsjax.errors import UserError
from hsjax.inference import Inference, decode, embed, mean_squared_error
from hsjax.metrics import features, generation, latents, neighbours
from hsjax.samplers import SAMPLERS, slerp

PICTURED = 64  # images in each panel of a figure


class Embedded(NamedTuple):
    """What metrics of latents get: the posteriors' means, and labels where they teach anything."""

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
    """The test latents in the plane."""
    return {}, {"tsne": latents.tsne(embedded.test[:10_000])}


LATENT_METRICS: dict[str, Callable[[Embedded], _Found]] = {
    "knn": knn,
    "probe": probe,
    "latents": describe,
    "tsne": tsne,
}
METRICS: ChainMap[str, Callable] = ChainMap(LATENT_METRICS, generation.METRICS)  # type: ignore[arg-type]


class Evaluation(NamedTuple):
    """What `evaluate` finds out."""

    numbers: dict  # by name, as metrics.json holds them
    arrays: dict[str, np.ndarray]  # of the latents, as embeddings.npz holds them
    panels: dict[str, np.ndarray]  # uint8 images by title
    interpolations: np.ndarray  # uint8 [rows, columns, H, W, C]


def feature_networks(config: ConfigDict, dataset: data.Dataset) -> list[features.FeatureNetwork]:
    """Those of evaluate.features: one for each of evaluate.feature_seeds, or the Inception network.

    Random ones stand in for classifiers of a set whose labels teach nothing.

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
        features.classifier(dataset, seed=seed, steps=wanted.feature_steps)
        for seed in wanted.feature_seeds
    ]


def check(config: ConfigDict, dataset: data.Dataset) -> None:
    """Find out before a long training what would end the evaluation after it.

    Raises:
      UserError: no usable weights for Inception, or images that it can't take.
    """
    if config.evaluate.features == "inception":
        (network,) = feature_networks(config, dataset)
        try:
            network.extract(dataset.test_images[:0])
        except ValueError as error:
            raise UserError(f"evaluate.features=inception can't take this set: {error}") from error


def evaluate(
    config: ConfigDict,
    setup: train.Setup,
    objective: train.Objective,
    inference: Inference,
    state: train.TrainState,
    dataset: data.Dataset,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Judge a state on the test split.

    Reconstructions are decoded from the posteriors' means; the error is given once more for a
    sampled z, as in training. The terms of the regulariser take the whole test split as their
    batch. Samples are decoded, rounded to uint8 and compared with as many test images and their
    reconstructions.

    Args:
      config: of the run; its `sample` and `evaluate` fields say what is judged.
      setup: of the run.
      objective: of the run.
      inference: of the run.
      state: to be judged, on every device of this process.
      dataset: of the run.
      say: told what is being done.

    Raises:
      UserError: a feature network that can't be had, or outputs that are not finite.
    """
    batch_size = config.train.batch_size
    batch_size += -batch_size % jax.local_device_count()
    noise_key, sample_key = jax.random.split(train.random_key(config.seed))
    images, labels = dataset.test_images, dataset.test_labels
    lacks = features.lacking(dataset)

    say(f"encoding {len(images)} test images")
    test = embed(inference, state, images, batch_size)
    numbers: dict[str, Any] = {}
    numbers |= {"epoch": int(state.step) // setup.steps, "test_images": len(images)}
    numbers |= _errors(setup, inference, state, images, test, noise_key, batch_size)
    terms = inference.terms(objective, state, test, noise_key, images, labels)
    numbers["regulariser"] = float(terms.pop("regulariser"))
    numbers["terms"] = {name: float(value) for name, value in terms.items()}
    numbers |= {name: config.evaluate[name] for name in ("batch_norm", "latent_scale")}

    say(f"encoding {len(dataset.train_images)} training images")
    bank = embed(inference, state, dataset.train_images, batch_size)
    arrays = {"test_mean": np.asarray(test.mean)}
    if labels is not None:
        arrays["test_labels"] = labels
    taught = (None, None) if lacks else (dataset.train_labels, labels)
    embedded = Embedded(config, bank.mean, taught[0], test.mean, taught[1])
    for name in (name for name in LATENT_METRICS if name in config.evaluate.metrics):
        say(f"latents: {name}")
        found, described = LATENT_METRICS[name](embedded)
        numbers, arrays = numbers | found, arrays | described

    count = min(config.sample.count, len(images))
    reconstructions = decode(inference, state, test.mean[:count], batch_size)
    fitted_to = bank if config.sample.fit_split == "train" else test
    samples = {}
    for name in dict.fromkeys((config.sample.sampler, *config.evaluate.samplers)):
        say(f"{count} samples of {name}")
        # Samples of one sampler don't depend on which others there are.
        key = jax.random.fold_in(sample_key, zlib.crc32(name.encode()))
        z = _sample(name, fitted_to, objective, inference, state, key, count, batch_size)
        samples[name] = decode(inference, state, z, batch_size)

    notes = _notes(config, dataset, lacks, count, batch_size)
    if config.evaluate.features != "none" and set(config.evaluate.metrics) & set(
        generation.METRICS
    ):
        chosen = np.random.default_rng(config.seed).permutation(len(bank.mean))[:count]
        if len(chosen) < count:
            notes.append(f"only {len(chosen)} training images are reconstructed for comparison")
        sets = generation.Sets(
            test=images[:count],
            reconstructions=reconstructions,
            train_reconstructions=decode(inference, state, bank.mean[chosen], batch_size),
            samples=samples,
        )
        say(f"getting the feature networks ready ({config.evaluate.features})")
        numbers |= {"sample_count": count, "fit_split": config.sample.fit_split, "generation": []}
        for network in feature_networks(config, dataset):
            notes += features.doubts(network, dataset)
            row = generation.judge(network, sets, config.evaluate.metrics, say)
            numbers["generation"].append(row)
        notes += dict.fromkeys(n for row in numbers["generation"] for n in row.pop("notes"))
    numbers["notes"] = notes

    panels = {"test images": images, "reconstructions": reconstructions}
    panels |= {f"samples: {name}": s for name, s in samples.items()}
    rows = np.arange(min(16, len(images) // 2 * 2)).reshape(-1, 2)
    steps = jnp.linspace(0.0, 1.0, 10, dtype=jnp.float32)
    lines = [slerp(test.mean[a], test.mean[b], steps) for a, b in rows]
    between = decode(inference, state, np.concatenate(lines), batch_size)
    return Evaluation(
        numbers,
        arrays,
        {title: p[:PICTURED] for title, p in panels.items()},
        between.reshape(len(rows), 10, *between.shape[1:]),
    )


def _errors(setup, inference, state, images, test, key, batch_size) -> dict[str, float]:
    """The reconstruction error of the means, and of a sample."""
    mse, mse_sampled = (
        mean_squared_error(inference, state, images, z, batch_size)
        for z in (test.mean, test.sample(key))
    )
    return {
        "mse_sum": mse,
        "mse_per_value_x1000": 1000.0 * mse / int(np.prod(setup.shape)),
        "mse_sum_sampled_z": mse_sampled,
    }


def _sample(name, posterior, objective, inference, state, key, count, batch_size) -> np.ndarray:
    """Latents of a sampler, fitted to posteriors: [count, n]."""
    sampler = SAMPLERS[name]
    try:
        parameters = sampler.fit(
            posterior.mean,
            posterior=posterior,
            key=jax.random.fold_in(key, 0),
            prior=lambda key, count: inference.prior(objective, state, key, count),
            encode=lambda images: embed(inference, state, images, batch_size),
            decode=lambda z: decode(inference, state, z, batch_size),
        )
        return np.asarray(sampler.sample(parameters, key, count))
    except ValueError as reason:
        raise UserError(f"{name} can't be fitted to these latents: {reason}") from reason


def _compares_images(config) -> bool:
    return any(name in config.evaluate.metrics for name in generation.METRICS)


def _notes(config, dataset, lacks, count, batch_size) -> list[str]:
    """What a reader of the numbers must know."""
    wanted, notes = config.evaluate, []
    if wanted.latent_scale != 1.0:
        notes.append(f"every latent is multiplied by {wanted.latent_scale:g} before it is decoded")
    if wanted.batch_norm == "batch":
        notes.append(f"BatchNorm takes the statistics of each batch of {batch_size} that is judged")
    if lacks:
        need = "k-NN accuracy and linear probe"
        if dataset.test_labels is None:
            need = "k-NN accuracy, linear probe and colours"
        notes.append(f"{lacks}: {need} are left out")
    if count < config.sample.count:
        notes.append(f"{count} samples, as many as there are test images")
    if wanted.features == "classifier" and lacks and _compares_images(config):
        notes.append(
            f"{lacks} to train a feature network with: images are judged by one of random "
            "weights, FD[random-conv]; evaluate.features=inception gives FID"
        )
    return notes
