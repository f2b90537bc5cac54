"""A trained model -> one dictionary of numbers and the pictures that go with it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax import Array

from hsjax import batches, data, train
from hsjax.metrics.neighbours import knn_accuracy
from hsjax.models import Latent
from hsjax.samplers import SAMPLERS


class Inference(NamedTuple):
    """The model in evaluation mode (BatchNorm on running statistics), jitted."""

    encode: Callable  # (state, uint8 [B, H, W, C]) -> Latent of [B, n]
    decode: Callable  # (state, [B, n]) -> [B, H, W, C] in [0, 1]
    errors: Callable  # (state, uint8 [B, H, W, C], z [B, n]) -> squared error [B], summed


def inference(experiment: train.Experiment) -> Inference:
    """The functions of a run's model on images as they are in the data."""

    def encode(state, images):
        model = experiment.model(state.params, state.batch_stats)
        return model.encode(experiment.pad(batches.prepare(images)))

    def decode(state, z):
        model = experiment.model(state.params, state.batch_stats)
        return experiment.crop(model.decode(z))

    def errors(state, images, z):
        return jnp.sum((batches.prepare(images) - decode(state, z)) ** 2, axis=(1, 2, 3))

    return Inference(*map(jax.jit, (encode, decode, errors)))


def embed(model: Inference, state: train.TrainState, images, batch_size: int) -> Latent:
    """μ and log σ² of any number of uint8 images, [count, n] each, as NumPy arrays."""
    parts = []
    for indices, mask in batches.eval_batches(len(images), batch_size):
        latent = jax.device_get(model.encode(state, images[indices]))
        parts.append([x[mask] for x in latent])
    return Latent(*map(np.concatenate, zip(*parts, strict=True)))


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


def evaluate(
    experiment: train.Experiment,
    objective: train.Objective,
    model: Inference,
    state: train.TrainState,
    dataset: data.Dataset,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Judge a state on the test split.

    Reconstructions are decoded from z = μ, and once more from a sampled z as in training. The
    terms of the regulariser take the whole test split as their batch.

    Returns:
      (numbers by name, images by title: originals, reconstructions and new samples).
    """
    config = experiment.config
    batch_size = config.train.batch_size
    noise_key, sample_key = jax.random.split(jax.random.key(config.seed))
    test = embed(model, state, dataset.test_images, batch_size)
    noise = np.asarray(jax.random.normal(noise_key, test.mean.shape))
    values = int(np.prod(experiment.shape))

    def error(z):
        return mean_squared_error(model, state, dataset.test_images, z, batch_size)

    mse, mse_sampled = error(test.mean), error(test.mean + test.std * noise)
    numbers = {
        "epoch": int(state.step) // experiment.steps,
        "test_images": len(dataset.test_images),
        "mse_sum": mse,
        "mse_per_value_x1000": 1000.0 * mse / values,
        "mse_sum_sampled_z": mse_sampled,
    }
    parts = jax.jit(train.regulariser, static_argnums=0)(config.loss.kind, test, objective.spec)
    numbers |= {name: float(value) for name, value in parts.items()}

    fitted_to = test.mean
    labels = dataset.train_labels is not None and dataset.test_labels is not None
    if labels or config.sample.fit_split == "train":
        bank = embed(model, state, dataset.train_images, batch_size).mean
        if config.sample.fit_split == "train":
            fitted_to = bank
        if labels:
            k = min(config.evaluate.neighbours, len(bank))
            numbers["knn_neighbours"] = k
            numbers["knn_accuracy"] = knn_accuracy(
                bank, dataset.train_labels, test.mean, dataset.test_labels, k
            )

    sampler = SAMPLERS[config.sample.sampler]
    z = sampler.sample(sampler.fit(fitted_to), sample_key, 64)
    originals = dataset.test_images[:64]
    pictures = {
        "originals": originals / np.float32(255.0),
        "reconstructions": np.asarray(model.decode(state, test.mean[:64])),
        f"new samples ({config.sample.sampler})": np.asarray(model.decode(state, z)),
    }
    return numbers, pictures


def table(numbers: dict, dataset: data.Dataset) -> str:
    """The numbers as a small table for a terminal."""
    names = {
        "mse_sum": "MSE, sum over an image's values",
        "mse_per_value_x1000": "MSE, 1000 x mean per value",
        "mse_sum_sampled_z": "MSE (sum) of a sampled z",
        "kl": "regulariser",
        "knn_accuracy": f"k-NN accuracy (k = {numbers.get('knn_neighbours')})",
    }
    skipped = ("epoch", "test_images", "knn_neighbours")
    rows = [(names.get(k, f"  {k}"), f"{v:.4g}") for k, v in numbers.items() if k not in skipped]
    if "knn_accuracy" not in numbers:
        rows.append(("k-NN accuracy", "no labels"))
    width = max(len(name) for name, _ in rows)
    head = f"{dataset.name}: {numbers['test_images']} test images, epoch {numbers['epoch']}"
    return "\n".join([head, *(f"  {name:<{width}}  {value:>9}" for name, value in rows)])


def example_images(
    model: Inference, state: train.TrainState, images: np.ndarray
) -> tuple[np.ndarray, Array]:
    """The first 16 uint8 images and their reconstructions, in [0, 1]."""
    images = images[:16]
    return images / np.float32(255.0), model.decode(state, model.encode(state, images).mean)
