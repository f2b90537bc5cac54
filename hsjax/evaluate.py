"""A trained model -> one dictionary of numbers, and the arrays that the figures are drawn from."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax import Array
from ml_collections import ConfigDict

from hsjax import batches, data, devices, train
from hsjax.errors import UserError
from hsjax.metrics import features, generation, latents, neighbours
from hsjax.models import Latent
from hsjax.samplers import SAMPLERS, slerp

PICTURED = 64  # images in each panel of a figure


class Inference(NamedTuple):
    """The functions of a trained model, jitted."""

    encode: Callable  # (state, uint8 [B, H, W, C]) -> Latent of [B, n]
    decode: Callable  # (state, [B, n]) -> [B, H, W, C] in [0, 1]
    errors: Callable  # (state, uint8 [B, H, W, C], z [B, n]) -> squared error [B], summed


def inference(
    experiment: train.Experiment, latent_scale: float = 1.0, batch_norm: str = "running"
) -> Inference:
    """The functions of a run's model on images as they are in the data.

    The decoder gets its latents times latent_scale, after the projection if the model projects.
    BatchNorm takes its running statistics, or those of the batch if batch_norm is "batch".
    The devices of this process share the rows of what they are given; a state is on all of them.
    """
    by_batch = batch_norm == "batch"
    split = functools.partial(devices.split, devices=jax.local_devices())

    def encode(state, images):
        model = experiment.model(state.params, state.batch_stats)
        return model.encode(experiment.pad(batches.prepare(split(images))), train=by_batch)

    def decode(state, z):
        model = experiment.model(state.params, state.batch_stats)
        return experiment.crop(model.decode(split(z), train=by_batch, scale=latent_scale))

    def errors(state, images, z):
        return jnp.sum((batches.prepare(images) - decode(state, z)) ** 2, axis=(1, 2, 3))

    return Inference(jax.jit(encode), jax.jit(decode), jax.jit(errors))


def embed(model: Inference, state: train.TrainState, images, batch_size: int) -> Latent:
    """μ and log σ² of any number of uint8 images, [count, n] each, as NumPy arrays.

    Raises:
      UserError: a latent that is not a finite number.
    """
    parts = []
    for indices, mask in batches.eval_batches(len(images), batch_size):
        latent = jax.device_get(model.encode(state, images[indices]))
        parts.append([x[mask] for x in latent])
    mean, log_variance = map(np.concatenate, zip(*parts, strict=True))
    _check_finite("encoder", mean, log_variance)
    return Latent(mean, log_variance)  # type: ignore[arg-type]


def decode(model: Inference, state: train.TrainState, z, batch_size: int) -> np.ndarray:
    """Images of latents [count, n] as they'd be saved: clipped, rounded, uint8 [count, H, W, C].

    Raises:
      UserError: an output that is not a finite number.
    """
    parts = []
    for indices, mask in batches.eval_batches(len(z), batch_size):
        images = np.asarray(model.decode(state, z[indices]))[mask]
        _check_finite("decoder", images)
        parts.append(np.rint(255.0 * np.clip(images, 0.0, 1.0)).astype(np.uint8))
    return np.concatenate(parts)


def _check_finite(part: str, *outputs: np.ndarray) -> None:
    if not all(np.isfinite(x).all() for x in outputs):
        raise UserError(f"the {part}'s output is not finite: the run has diverged, train it again")


@jax.numpy_dtype_promotion("standard")  # which clu needs
def mean_squared_error(
    model: Inference, state: train.TrainState, images, z, batch_size: int
) -> float:
    """Mean over all images of the squared error summed over an image's values."""
    average = metrics.Average.empty()
    for indices, mask in batches.eval_batches(len(images), batch_size):
        errors = model.errors(state, images[indices], z[indices])
        part = metrics.Average.from_model_output(errors, mask=jnp.asarray(mask))
        average = average.merge(part)
    return float(average.compute())


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
    experiment: train.Experiment,
    model: Inference,
    state: train.TrainState,
    dataset: data.Dataset,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Judge a state on the test split.

    Reconstructions are decoded from z = μ; the error is given once more for a sampled z, as in
    training. The terms of the regulariser take the whole test split as their batch. Samples are
    decoded, rounded to uint8 and compared with as many test images and their reconstructions.

    Args:
      config: of the run; its `sample` and `evaluate` fields say what is judged.
      experiment: of the run.
      model: its inference functions.
      state: to be judged, on every device of this process.
      dataset: of the run.
      say: told what is being done.

    Raises:
      UserError: a feature network that can't be had, or outputs that are not finite.
    """
    wanted, batch_size = config.evaluate, config.train.batch_size
    batch_size += -batch_size % jax.local_device_count()
    noise_key, sample_key = jax.random.split(train.random_key(config.seed))
    images, labels = dataset.test_images, dataset.test_labels
    lacks, notes = features.lacking(dataset), []

    say(f"encoding {len(images)} test images")
    test = embed(model, state, images, batch_size)
    noise = np.asarray(jax.random.normal(noise_key, test.mean.shape, jnp.float32))

    def error(z):
        return mean_squared_error(model, state, images, z, batch_size)

    mse, mse_sampled = error(test.mean), error(test.mean + test.std * noise)
    numbers = {
        "epoch": int(state.step) // experiment.steps,
        "test_images": len(images),
        "mse_sum": mse,
        "mse_per_value_x1000": 1000.0 * mse / int(np.prod(experiment.shape)),
        "mse_sum_sampled_z": mse_sampled,
    }
    spec = train.objective(config).spec
    parts = jax.jit(train.regulariser, static_argnums=0)(experiment.config.loss, test, spec)
    numbers |= {name: float(value) for name, value in parts.items()}
    if wanted.latent_scale != 1.0:
        numbers["latent_scale"] = wanted.latent_scale
        notes.append(f"every latent is multiplied by {wanted.latent_scale:g} before it is decoded")

    if wanted.batch_norm == "batch":
        notes.append(f"BatchNorm takes the statistics of each batch of {batch_size} that is judged")
    numbers["batch_norm"] = wanted.batch_norm

    say(f"encoding {len(dataset.train_images)} training images")
    bank = embed(model, state, dataset.train_images, batch_size).mean
    if not lacks:
        question = (bank, dataset.train_labels, test.mean, labels)
        if "knn" in wanted.metrics:
            say("looking for neighbours")
            numbers["knn_neighbours"] = min(wanted.neighbours, len(bank))
            numbers["knn_accuracy"] = neighbours.knn_accuracy(*question, numbers["knn_neighbours"])
        if "probe" in wanted.metrics:
            say("fitting a linear probe")
            numbers["linear_probe_accuracy"] = neighbours.linear_probe_accuracy(*question)
    else:
        need = "k-NN accuracy and linear probe"
        if labels is None:
            need = "k-NN accuracy, linear probe and colours"
        notes.append(f"{lacks}: {need} are left out")

    arrays = {"test_mean": np.asarray(test.mean)}
    if labels is not None:
        arrays["test_labels"] = labels
    if "latents" in wanted.metrics:
        say("describing the latents")
        numbers["latents"], described = latents.diagnostics(test.mean, labels)
        arrays |= described
        if test.mean.shape[1] >= 3:
            arrays["groups"] = latents.groups(test.mean[:10_000])
    if "tsne" in wanted.metrics:
        say("t-SNE")
        arrays["tsne"] = latents.tsne(test.mean[:10_000])

    count = min(config.sample.count, len(images))
    if count < config.sample.count:
        notes.append(f"{count} samples, as many as there are test images")
    fitted_to = bank if config.sample.fit_split == "train" else test.mean
    reconstructions = decode(model, state, test.mean[:count], batch_size)
    samples = {}
    for name in dict.fromkeys((config.sample.sampler, *wanted.samplers)):
        say(f"{count} samples of {name}")
        sampler = SAMPLERS[name]
        # Samples of one sampler don't depend on which others are asked for.
        key = jax.random.fold_in(sample_key, list(SAMPLERS).index(name))
        try:
            z = np.asarray(sampler.sample(sampler.fit(fitted_to), key, count))
        except ValueError as reason:
            raise UserError(f"{name} can't be fitted to these latents: {reason}") from reason
        samples[name] = decode(model, state, z, batch_size)

    of_images = {"frechet", "kid", "prdc"}.intersection(wanted.metrics)
    if wanted.features != "none" and of_images:
        if wanted.features == "classifier" and lacks:
            notes.append(
                f"{lacks} to train a feature network with: images are judged by one of random "
                "weights, FD[random-conv]; evaluate.features=inception gives FID"
            )
        chosen = np.random.default_rng(config.seed).permutation(len(bank))[:count]
        if len(chosen) < count:
            notes.append(f"only {len(chosen)} training images are reconstructed for comparison")
        sets = generation.Sets(
            test=images[:count],
            reconstructions=reconstructions,
            train_reconstructions=decode(model, state, bank[chosen], batch_size),
            samples=samples,
        )
        say(f"getting the feature networks ready ({wanted.features})")
        numbers["sample_count"] = count
        numbers["fit_split"] = config.sample.fit_split
        numbers["generation"] = []
        for network in feature_networks(config, dataset):
            notes += features.doubts(network, dataset)
            numbers["generation"].append(generation.judge(network, sets, wanted.metrics, say))
    notes += dict.fromkeys(n for row in numbers.get("generation", ()) for n in row.pop("notes"))
    numbers["notes"] = notes

    panels = {"test images": images, "reconstructions": reconstructions}
    panels |= {f"samples: {name}": s for name, s in samples.items()}
    rows = np.arange(min(16, len(images) // 2 * 2)).reshape(-1, 2)
    steps = jnp.linspace(0.0, 1.0, 10, dtype=jnp.float32)
    lines = [slerp(test.mean[a], test.mean[b], steps) for a, b in rows]
    between = decode(model, state, np.concatenate(lines), batch_size)
    return Evaluation(
        numbers,
        arrays,
        {title: p[:PICTURED] for title, p in panels.items()},
        between.reshape(len(rows), 10, *between.shape[1:]),
    )


def example_images(
    model: Inference, state: train.TrainState, images: np.ndarray
) -> tuple[np.ndarray, Array]:
    """The first 16 uint8 images and their reconstructions, in [0, 1]."""
    images = images[:16]
    return images / np.float32(255.0), model.decode(state, model.encode(state, images).mean)
