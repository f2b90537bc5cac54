"""A trained model on any number of images or latents, in jitted batches."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hsjax import batches, devices, training
from hsjax.errors import UserError


class Inference(NamedTuple):
    """The functions of a trained model, jitted."""

    encode: Callable  # (state, [B, H, W, C], uint8 or in [0, 1]) -> posterior of [B, n]
    decode: Callable  # (state, [B, n]) -> [B, H, W, C] in [0, 1]
    errors: Callable  # (state, uint8 [B, H, W, C], z [B, n]) -> squared error [B], summed
    terms: Callable  # (state, posterior, key, images, labels) -> scalars by name
    prior: Callable  # (state, key, count, steps) -> [count, n]: where the method samples


def build_inference(
    setup: training.Setup,
    objective: training.Objective,
    latent_scale: float = 1.0,
    batch_norm: str = "running",
) -> Inference:
    """The functions of a run's model on images as they are in the data.

    The decoder gets its latents times latent_scale, after the projection if the model projects.
    BatchNorm takes its running statistics, or those of the batch if batch_norm is "batch".
    The devices of this process share the rows of the inputs; a state is on all of them.
    """
    programs = _compile(setup, latent_scale, batch_norm == "batch")
    return Inference(*(functools.partial(program, objective) for program in programs))


@functools.lru_cache(maxsize=8)  # runs that differ in numbers share them
def _compile(setup: training.Setup, latent_scale: float, by_batch: bool) -> tuple[Callable, ...]:
    """The functions of `Inference`, in order, each with the run's objective before the state."""
    split = functools.partial(devices.split, devices=jax.local_devices())

    def encode(objective, state, images):
        model = setup.model(objective, state)
        return model.encode(batches.prepare(split(images)), train=by_batch)

    def decode(objective, state, z):
        model = setup.model(objective, state)
        return model.decode(split(z), train=by_batch, scale=latent_scale)

    def errors(objective, state, images, z):
        images = batches.prepare(images)
        return jnp.sum((images - decode(objective, state, z)) ** 2, axis=(1, 2, 3))

    def terms(objective, state, posterior, key, images, labels):
        model, z = setup.model(objective, state), posterior.sample(key)
        batch = {"images": batches.prepare(images), "labels": labels}
        batch["epoch"] = state.step // setup.steps  # the last that was trained
        batch["reconstructions"] = model.decode(z)
        method_key = jax.random.fold_in(key, 1)
        return model.regularise(posterior, z, key=method_key, sample_key=key, **batch)

    def prior(objective, state, key, count, steps):
        model, n = setup.model(objective, state), setup.config.model.latent_dim
        context = model.context() | {"hyper": objective.hyper, "steps": steps}
        for name in ("encode", "decode"):
            context[name] = functools.partial(context[name], train=by_batch)
        return setup.method.prior(key, count, n, **context)

    jitted = [jax.jit(function) for function in (encode, decode, errors, terms)]
    return *jitted, jax.jit(prior, static_argnames=("count", "steps"))


def whole_batch(batch_size: int) -> int:
    """The smallest batch, of this size or more, that this process's devices can share evenly."""
    return batch_size + -batch_size % jax.local_device_count()


def _ahead(
    function: Callable[[np.ndarray], Any], count: int, batch_size: int
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields a jitted function's result for each batch of rows, and the mask of rows that count.

    The next batch is started before a result is awaited: the device does not wait for the host.
    """
    before = None
    for rows, mask in batches.eval_batches(count, batch_size):
        after = function(rows), mask
        if before:
            yield before
        before = after
    if before:
        yield before


def embed(inference: Inference, state: training.TrainState, images, batch_size: int) -> Any:
    """The posteriors of any number of uint8 images, as NumPy arrays.

    Raises:
      UserError: a number that is not finite.
    """
    parts = []
    ahead = _ahead(lambda rows: inference.encode(state, images[rows]), len(images), batch_size)
    for posterior, mask in ahead:
        parts.append(jax.tree.map(lambda x, mask=mask: x[mask], jax.device_get(posterior)))
    found = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    _check_finite("encoder", *jax.tree.leaves(found))
    return found


def decoded(
    inference: Inference, state: training.TrainState, z, batch_size: int
) -> Iterator[np.ndarray]:
    """Batches of images of latents [count, n]: float32 [batch, H, W, C] in [0, 1].

    Raises:
      UserError: an output that is not a finite number.
    """
    ahead = _ahead(lambda rows: inference.decode(state, z[rows]), len(z), batch_size)
    for images, mask in ahead:
        images = np.asarray(images)[mask]
        _check_finite("decoder", images)
        yield np.clip(images, 0.0, 1.0)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as they'd be saved: rounded to whole values."""
    return np.rint(255.0 * images).astype(np.uint8)


def decode(inference: Inference, state: training.TrainState, z, batch_size: int) -> np.ndarray:
    """Images of latents [count, n] as they'd be saved, uint8 [count, H, W, C].

    Raises:
      UserError: an output that is not a finite number.
    """
    parts = decoded(inference, state, z, batch_size)
    return np.concatenate([to_uint8(images) for images in parts])


def _check_finite(part: str, *outputs: np.ndarray) -> None:
    if not all(np.isfinite(x).all() for x in outputs):
        raise UserError(f"the {part}'s output is not finite: the run has diverged, train it again")


def squared_errors(
    inference: Inference, state: training.TrainState, images, z, batch_size: int
) -> np.ndarray:
    """The squared error of each image, summed over its values: [count].

    Raises:
      UserError: an error that is not a finite number.
    """
    parts = []
    for indices, mask in batches.eval_batches(len(images), batch_size):
        parts.append(np.asarray(inference.errors(state, images[indices], z[indices]))[mask])
    _check_finite("decoder", *parts)
    return np.concatenate(parts)


def mean_squared_error(
    inference: Inference, state: training.TrainState, images, z, batch_size: int
) -> float:
    """Mean over all images of the squared error summed over an image's values.

    Raises:
      UserError: an error that is not a finite number.
    """
    errors = squared_errors(inference, state, images, z, batch_size)
    return float(errors.mean(dtype=np.float64))


def example_images(
    inference: Inference, state: training.TrainState, images: np.ndarray
) -> tuple[np.ndarray, Array]:
    """The first 16 uint8 images and their reconstructions, in [0, 1]."""
    images = images[:16]
    return images / np.float32(255.0), inference.decode(state, inference.encode(state, images).mean)
