"""Feature networks, in whose features distances between sets of images are measured."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax import Array, lax

from hsjax import batches
from hsjax.data import Dataset
from hsjax.errors import UserError
from hsjax.files import read_npz, reason, remove_orphans, user_cache, write_npz

_BATCH = 128
_BLOCK = 500  # images whose features are taken at a time
WIDTH = 128  # features of the classifier and of the random network


class FeatureNetwork(NamedTuple):
    """A function from images to features, and facts about it for reports."""

    name: str  # "classifier-<data set>", "random-conv" or "inception"
    extract: Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, C] -> float32 [N, d]
    about: dict[str, Any]

    @property
    def distance(self) -> str:
        """The name of a Fréchet distance of its features: only the Inception network's is FID."""
        return "FID" if self.name == "inception" else f"FD[{self.name}]"


def classifier(
    dataset: Dataset,
    *,
    seed: int = 0,
    steps: int = 500,
    say: Callable[[str], None] = lambda text: None,
) -> FeatureNetwork:
    """A small convolutional classifier of the data set; its last hidden layer gives the features.

    3×3 convolutions of 16, 32 and 64 channels with ReLU and 2×2 mean pooling between, while both
    sides have 4 pixels or more, then a hidden layer of 128. Trained on the train split (Adam, batch
    128, cosine decay from 3e-3) and kept in the user's cache under a hash of data, seed and steps.

    Args:
      dataset: with labels.
      seed: of its initial parameters and of the order of its batches.
      steps: of training.
      say: called with texts about the progress.

    Raises:
      UserError: its labels can't train a classifier, see `lacking`.
    """
    if lacks := lacking(dataset):
        raise UserError(
            f"{dataset.name} has {lacks} to train a feature network with: "
            "set evaluate.features to random, inception or none"
        )
    identity = {
        "network": "3x3 16-32-64 mean-pooled, hidden 128, v1",
        "data": _data_hash(dataset),
        "seed": seed,
        "steps": steps,
    }
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    name = dataset.name
    is_path = name.endswith((".npz", "/"))
    stem = Path(name).name.removesuffix(".npz") if is_path else re.sub("[/:]", "-", name)
    cache = user_cache()
    path = cache / f"classifier-{stem}-{key[:16]}.npz" if cache else None
    if path:
        remove_orphans(path.parent, ".classifier-*.tmp")
    found = _read(path, key) if path else None
    if found is None:
        params = _fit(dataset, seed, steps, say)
        accuracy = _accuracy(params, dataset)
        if path:
            try:
                write_npz(path, {"key": np.array(key), "accuracy": np.array(accuracy), **params})
            except (OSError, ValueError) as error:  # read-only, full, or zipfile's word for full
                logging.warning(
                    "the feature network could not be kept (%s): the next run trains it again",
                    reason(error),
                )
    else:
        params, accuracy = found
    about = {
        "seed": seed,
        "steps": steps,
        "test_accuracy": accuracy,
        "dimension": WIDTH,
        "sha256": key,
    }
    return FeatureNetwork(f"classifier-{stem}", partial(_extract, params), about)


def lacking(dataset: Dataset) -> str:
    """What a set lacks for training a classifier on its labels, "" if nothing."""
    if dataset.train_labels is None or dataset.test_labels is None:
        return "no labels"
    classes, counts = np.unique(np.asarray(dataset.train_labels), return_counts=True)
    if len(classes) == 1:
        return "only one class"
    if counts.max() == 1:
        return "no class of two training images"
    if not np.isin(dataset.test_labels, classes).any():
        return "no class in both splits"
    return ""


def doubts(network: FeatureNetwork, dataset: Dataset) -> list[str]:
    """A line to be shown if a network's test accuracy may be no better than a guess.

    That is, at most two standard deviations above the share of the commonest class.
    """
    accuracy, count = network.about.get("test_accuracy"), len(dataset.test_images)
    if accuracy is None:
        return []
    share = np.unique(np.asarray(dataset.test_labels), return_counts=True)[1].max() / count
    if accuracy > share + 2 * (share * (1 - share) / count) ** 0.5:
        return []
    return [
        f"{network.distance} may mean little: its classifier is right about {accuracy:.3f} of the "
        f"test images, of which {share:.3f} are of one class; more evaluate.feature_steps may help"
    ]


def random(shape: tuple[int, ...], *, seed: int = 0) -> FeatureNetwork:
    """The layers of `classifier` with its initial weights, whatever the data are.

    Random features distinguish distributions, though not by what a person would look at. They are
    used for sets whose labels can't train a classifier; the distance is called FD[random-conv].

    Args:
      shape: (height, width, channels) of the images.
      seed: of the weights.
    """
    params = _initial(shape, 1, seed)
    del params["logits_kernel"], params["logits_bias"]
    digest = hashlib.sha256(b"".join(x.tobytes() for x in params.values())).hexdigest()
    about = {"seed": seed, "test_accuracy": None, "dimension": WIDTH, "sha256": digest}
    return FeatureNetwork("random-conv", partial(_extract, params), about)


def inception(path: str) -> FeatureNetwork:
    """The network of the FID, from its weights in a local file: see hsjax/metrics/inception.py.

    Raises:
      UserError: no such file, or not those weights.
    """
    from hsjax.metrics import inception as network

    if not os.path.isfile(os.path.expanduser(path)):
        raise UserError(
            f"evaluate.inception_weights is {path!r}, which is no file: download {network.URL} "
            "and give its path"
        )
    return FeatureNetwork("inception", *network.load(os.path.expanduser(path)))


def _data_hash(dataset: Dataset) -> str:
    """Hash of the images and labels of both splits (the test split's accuracy is saved, too)."""
    digest = hashlib.sha256()
    for array in dataset[1:]:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _initial(shape: tuple[int, ...], classes: int, seed: int) -> dict[str, np.ndarray]:
    """He-initialised parameters by name, for images of (height, width, channels)."""
    height, width, channels = shape
    rng = np.random.default_rng(seed)
    params = {}

    def layer(name, *kernel):
        scale = (2.0 / np.prod(kernel[:-1])) ** 0.5
        params[f"{name}_kernel"] = (scale * rng.standard_normal(kernel)).astype(np.float32)
        params[f"{name}_bias"] = np.zeros(kernel[-1], np.float32)

    for i, outputs in enumerate((16, 32, 64)):
        layer(f"conv{i}", 3, 3, channels, outputs)
        channels = outputs
        if i < 2 and min(height, width) >= 4:
            height, width = height // 2, width // 2
    layer("hidden", height * width * channels, WIDTH)
    layer("logits", WIDTH, classes)
    return params


def _features(params: dict[str, Array], images: Array) -> Array:
    """uint8 [B, H, W, C] -> [B, WIDTH]."""
    x = batches.prepare(images)
    for i in range(3):
        x = lax.conv_general_dilated(
            x,
            params[f"conv{i}_kernel"],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params[f"conv{i}_bias"][None, None, None])
        if i < 2 and min(x.shape[1:3]) >= 4:
            b, h, w, c = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    x = x.reshape(x.shape[0], -1) @ params["hidden_kernel"]
    return jax.nn.relu(x + params["hidden_bias"][None])


def _logits(params, images):
    return _features(params, images) @ params["logits_kernel"] + params["logits_bias"][None]


@jax.numpy_dtype_promotion("standard")  # which optax needs
def _fit(dataset: Dataset, seed: int, steps: int, say: Callable) -> dict[str, np.ndarray]:
    images = dataset.train_images
    classes, indices = np.unique(np.asarray(dataset.train_labels), return_inverse=True)
    labels = indices.astype(np.int32)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    params = jax.tree.map(jnp.asarray, _initial(images.shape[1:], len(classes), seed))
    rng = np.random.default_rng(seed)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, images, labels):
        def loss(params):
            logits = _logits(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for done in range(steps):
        if done % 250 == 0:
            say(f"training feature network {seed}, once: {done} of {steps} steps")
            jax.block_until_ready(params)
        indices = rng.integers(0, len(images), min(_BATCH, len(images)))
        params, state = step(params, state, images[indices], labels[indices])
    return {name: np.asarray(value) for name, value in params.items()}


def _blocks(function, params, images):
    """A jitted function over blocks of one size, so that it compiles once."""
    size = min(_BLOCK, len(images))
    for indices, mask in batches.eval_batches(len(images), size):
        yield np.asarray(function(params, images[indices]))[mask]


_jitted_features = jax.jit(_features)
_jitted_logits = jax.jit(_logits)


def _extract(params, images) -> np.ndarray:
    return np.concatenate(list(_blocks(_jitted_features, params, images)))


def _accuracy(params, dataset) -> float:
    logits = np.concatenate(list(_blocks(_jitted_logits, params, dataset.test_images)))
    answers = np.unique(dataset.train_labels)[logits.argmax(1)]
    return float(np.mean(answers == dataset.test_labels))


def _read(path: Path, key: str) -> tuple[dict[str, np.ndarray], float] | None:
    """Parameters and accuracy, if the file is whole and of this key."""
    names = [f"{layer}_{part}" for layer in _LAYERS for part in ("kernel", "bias")]
    if not os.path.exists(path):
        return None
    try:
        arrays = read_npz(path, ("key", "accuracy", *names))
        if str(arrays.pop("key", "")) == key and len(arrays) == 1 + len(names):
            return arrays, float(arrays.pop("accuracy"))
    except (UserError, TypeError, ValueError):
        pass
    logging.warning("%s is damaged: training that feature network again", path)
    return None


_LAYERS = ("conv0", "conv1", "conv2", "hidden", "logits")
