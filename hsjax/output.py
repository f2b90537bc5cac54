"""Images as files: a folder of PNGs, one .npz, or one picture."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hsjax.files import new_file, new_folder
from hsjax.inference import to_uint8


def save(out: Path, batches: Iterable[np.ndarray], columns: int | None = None) -> int:
    """Write images to a new file or folder, which appears once all are written.

    Args:
      out: "NAME.npz" gets uint8 [count, height, width, channels] as arr_0, "NAME.png" all images
        as tiles of one picture. Any other name is a folder, of 000000.png and so on.
      batches: of images [batch, height, width, channels] in [0, 1].
      columns: of the picture; about as many as rows if None.

    Returns:
      How many images there were.

    Raises:
      UserError: something is there already, or can't be written.
    """
    from PIL import Image

    if out.suffix in (".npz", ".png"):
        with new_file(out) as file:
            images = np.concatenate([to_uint8(batch) for batch in batches])
            if out.suffix == ".npz":
                np.savez(file, arr_0=images)
            else:
                Image.fromarray(_tiles(images, columns)).save(file, "png")
        return len(images)
    count = 0
    with new_folder(out) as folder:
        for batch in batches:
            for image in to_uint8(batch):
                Image.fromarray(_plain(image)).save(folder / f"{count:06d}.png")
                count += 1
    return count


def _plain(image: np.ndarray) -> np.ndarray:
    """[height, width, channels] as Pillow takes it: without the axis of a single channel."""
    return image[..., 0] if image.shape[-1] == 1 else image


def _tiles(images: np.ndarray, columns: int | None) -> np.ndarray:
    """Images side by side on white, small ones enlarged."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(count**0.5)
    rows, scale = -(-count // columns), -(-32 // max(height, width))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    images = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=255)
    empty = np.full((rows * columns - count, *images.shape[1:]), 255, np.uint8)
    grid = np.concatenate([images, empty]).reshape(rows, columns, *images.shape[1:])
    grid = grid.transpose(0, 2, 1, 3, 4)
    return _plain(grid.reshape(rows * grid.shape[1], columns * grid.shape[3], channels))
