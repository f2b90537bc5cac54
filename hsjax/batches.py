"""Batches of an epoch, and uint8 images as the model takes them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hsjax import devices
from hsjax.errors import UserError


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many batches show each of `count` images at least once: their quotient, rounded up.

    Raises:
      UserError: the batch is smaller than 2 or larger than the set.
    """
    if batch_size < 2:
        raise UserError(f"train.batch_size={batch_size}: make it 2 or more, for batch statistics")
    if batch_size > count:
        raise UserError(
            f"train.batch_size={batch_size}: there are {count} training images, so at most that"
        )
    return -(-count // batch_size)


def check_divisible(count: int, batch_size: int, device_count: int) -> None:
    """Raise a UserError unless so many devices can share a batch of `count` images evenly."""
    if batch_size % device_count == 0:
        return
    below = batch_size // device_count * device_count
    sizes = [str(size) for size in (below, below + device_count) if 0 < size <= count]
    make = f"make it {' or '.join(sizes)}, or let" if sizes else "let"
    raise UserError(
        f"train.batch_size={batch_size} can't be shared evenly by {device_count} devices: "
        f"{make} JAX see fewer of them"
    )


def epoch_order(key: Array, count: int, batch_size: int) -> Array:
    """Indices of an epoch's batches, int32 [steps, batch_size].

    A random permutation of the images, cut into batches. Where batch_size does not divide count,
    the last batch is completed with the permutation's first images, so that batches have one
    shape and no image is left out.

    Raises:
      UserError: as steps_per_epoch.
    """
    steps = steps_per_epoch(count, batch_size)
    order = jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))
    return jnp.concatenate([order, order[: steps * batch_size - count]]).reshape(steps, batch_size)


def stream(examples: Any, order: np.ndarray) -> Iterator[Any]:
    """Yields the batches examples[order[0]], examples[order[1]], ..., array by array.

    Threads gather them ahead and send each device its share. With several processes, each gathers
    only the rows of its own devices.

    Args:
      examples: a tree of arrays [count, ...] on the host, in memory or mapped into it.
      order: int32 [steps, batch_size], of epoch_order.
    """
    import grain  # half a second to import

    def batch(rows):
        def gather(array):
            shape = (len(rows), *array.shape[1:])
            return devices.share(shape, lambda mine: array[rows[mine]])

        return jax.tree.map(gather, examples)

    ahead = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    iterator = iter(grain.MapDataset.source(order).map(batch).to_iter_dataset(ahead))
    try:
        yield from iterator
    finally:
        iterator.close()


def eval_batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices int32 [batch_size], mask bool [batch_size]), each image once, in order.

    The last batch is completed with the first images, masked out (False), so that its batch
    statistics are of as many images as those of the others.
    """
    for start in range(0, count, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        mask = indices < count
        yield indices % np.int32(count), mask


def prepare(images: Array, key: Array | None = None, *, flip: bool = False) -> Array:
    """Turns uint8 images [..., height, width, channels] into float32 in [0, 1].

    Of floats, which are in [0, 1] already, only the dtype changes.

    With flip, each image is mirrored left to right with probability 1/2, which needs a key.
    """
    images = jnp.asarray(images)
    if flip:
        if key is None:
            raise ValueError("prepare: pass a key with flip=True")
        mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (*images.shape[:-3], 1, 1, 1))
        images = jnp.where(mirrored, images[..., ::-1, :], images)
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(jnp.float32)
    return images.astype(jnp.float32) * np.float32(1 / 255)  # jit rounds a division otherwise


def pad(images: Array, multiple: int) -> Array:
    """Zeros around [..., H, W, C] so that `multiple` divides H and W; an odd one is put last."""
    images = jnp.asarray(images)
    extra = [-size % multiple for size in images.shape[-3:-1]]
    widths = [(0, 0)] * (images.ndim - 3) + [(e // 2, e - e // 2) for e in extra] + [(0, 0)]
    return jnp.pad(images, widths)


def crop(images: Array, height: int, width: int) -> Array:
    """The middle [..., height, width, C] of padded images: undoes `pad`."""
    top, left = (images.shape[-3] - height) // 2, (images.shape[-2] - width) // 2
    if min(top, left) < 0:
        raise ValueError(f"crop: {height}x{width} is larger than images of {images.shape}")
    return images[..., top : top + height, left : left + width, :]
