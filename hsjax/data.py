"""A data set by name -> uint8 arrays on the host."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from hsjax import decoded, sources
from hsjax.errors import UserError
from hsjax.files import read_npz


class Dataset(NamedTuple):
    """Images and labels of both splits; labels are None where a set has none.

    Images may be JAX arrays, on the device already.
    """

    name: str
    train_images: np.ndarray  # uint8 [N, height, width, channels], 1 or 3 channels
    train_labels: np.ndarray | None  # int32 [N]
    test_images: np.ndarray  # uint8 [M, height, width, channels]
    test_labels: np.ndarray | None  # int32 [M]


_ARRAYS = Dataset._fields[1:]


def load(
    name: str,
    directory: str = "",
    *,
    size: int = 0,
    crop: int = 0,
    corrupt: str = "refuse",
    test_share: float = 0.1,
) -> Dataset:
    """Reads a data set.

    Args:
      name: "digits" (8x8 grey digits bundled with scikit-learn); a path ending in ".npz"; a path
        ending in "/" to a folder of images; or a tensorflow-datasets image set as tfds spells it
        ("mnist", "name/config", "name:1.0.0").
        An .npz holds train_images and test_images, uint8 [N, height, width] or
        [N, height, width, 1 or 3], and may hold train_labels and test_labels, integers [N].
        A folder holds train/ and test/, and in them images, or a folder of images for each class;
        or it holds these itself, and `test_share` splits them. See `sources.folder_of_images`.
      directory: where tensorflow-datasets keeps prepared sets; "" is its own default
        (TFDS_DATA_DIR or ~/tensorflow_datasets). A set that is not there is downloaded and
        prepared, which needs TensorFlow; a prepared one is read without it.
      size: height and width in pixels that the middle square of each image is scaled to; 0 leaves
        images as they are.
      crop: height and width of that square before; 0 is the largest there is.
      corrupt: "refuse" a set of which an image can't be read, or "skip" the image.
      test_share: share of the images of a folder without train/ and test/ that are for testing.

    Returns:
      Arrays in memory, or of a folder or tensorflow-datasets set, which may be large, mapped into
      memory: they are decoded once and kept, beside the set or in the user's cache.

    Raises:
      UserError: the set is unknown, missing, damaged, or not made of uint8 images of one size.
    """
    if name == "digits" or name.endswith(".npz"):
        if size or crop:
            raise UserError(f"data.size and data.crop can't scale {name}: scale its arrays")
        if name == "digits":
            return _load_digits()
        path = os.path.expanduser(name)
        advice = "give data.name an .npz of plain arrays of numbers, as np.savez writes it"
        return _checked(name, path, read_npz(path, _ARRAYS, advice))
    if name.endswith("/") or (
        name[:1] in ("/", "~", ".") and os.path.isdir(os.path.expanduser(name))
    ):
        name = f"{name.rstrip('/')}/"
        source = sources.folder_of_images(name, size, crop, test_share)
    else:
        source = sources.tfds_set(name, directory, size, crop)
    with sources.quiet():
        arrays = decoded.arrays(source, skip=corrupt == "skip")
    return _checked(name, source.name, arrays)


def of_config(fields: ConfigDict, name: str = "") -> Dataset:
    """The data set that the `data` fields of a config name; see `load`.

    With `name`, another set is read in the same way; a set of arrays is then not scaled.
    """
    arrays = name == "digits" or name.endswith(".npz")
    return load(
        name or fields.name,
        fields.dir,
        size=0 if arrays else fields.size,
        crop=0 if arrays else fields.crop,
        corrupt=fields.corrupt,
        test_share=fields.test_share,
    )


def checked(dataset: Dataset) -> Dataset:
    """A data set made in Python, after the checks that `load` makes of files.

    Images stay where they are, on the host or on the device; labels come to the host as int32, and
    images of [N, height, width] get an axis of one channel.

    Raises:
      UserError: as `load`.
    """
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"the data set is a {type(dataset).__name__}: make it an hsjax.data.Dataset"
        )
    arrays = dataset._asdict()
    name = str(arrays.pop("name"))
    return _checked(name, name, {key: x for key, x in arrays.items() if x is not None})


def leave_out(
    dataset: Dataset, classes: Sequence[int], judged: str = "test"
) -> tuple[Dataset, np.ndarray]:
    """A data set without some classes, and images of these classes, for the metric `ood`.

    Args:
      dataset: the whole data set.
      classes: labels; if empty, nothing is left out.
      judged: "test" or "validation": those images are from the test or from the training split.

    Returns:
      A data set whose other labels are unchanged, and uint8 images [count, H, W, C], maybe none.
      If any class is left out, these are copies in memory.

    Raises:
      UserError: labels that the set lacks, or less than two images left in a split.
    """
    told, images = f"data.leave_out={tuple(classes)}", dataset.test_images
    if not classes:
        return dataset, np.asarray(images[:0])
    if dataset.train_labels is None or dataset.test_labels is None:
        raise UserError(f"{told}: {dataset.name} has no labels, so leave out none: ()")
    known = np.union1d(dataset.train_labels, dataset.test_labels)
    if unknown := sorted(set(classes) - set(known.tolist())):
        raise UserError(
            f"{told}: {dataset.name} has no class {unknown[0]}: "
            f"choose from its {len(known)} between {known[0]} and {known[-1]}"
        )
    kept = {}
    for split in ("train", "test"):
        labels = getattr(dataset, f"{split}_labels")
        stays = np.flatnonzero(~np.isin(labels, classes))
        if len(stays) < 2:
            raise UserError(
                f"{told} leaves {len(stays)} of {len(labels)} {split} images: leave 2 or more"
            )
        kept[f"{split}_images"] = getattr(dataset, f"{split}_images")[stays]
        kept[f"{split}_labels"] = labels[stays]
    labels = dataset.test_labels
    if judged == "validation":
        images, labels = dataset.train_images, dataset.train_labels
    return dataset._replace(**kept), np.asarray(images[np.flatnonzero(np.isin(labels, classes))])


def fitted(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Images of any size, with 1 or 3 channels, converted to the shape that a model takes.

    Grey is repeated over three channels, and RGB becomes grey by the luma of ITU-R 601, as in
    Pillow's "L". Smaller images are centred on black.

    Args:
      images: uint8 [count, height, width, 1 or 3].
      shape: (height, width, channels) of the result.

    Raises:
      ValueError: images that are larger.
    """
    height, width, channels = images.shape[1:]
    above, beside = shape[0] - height, shape[1] - width
    if min(above, beside) < 0:
        raise ValueError(f"images of {height}x{width} are larger than {shape[0]}x{shape[1]}")
    if channels == 3 and shape[2] == 1:
        luma = images @ np.array([19595, 38470, 7471], np.int32) + 2**15  # Pillow's, of 2¹⁶
        images = (luma >> 16).astype(np.uint8)[..., None]
    images = np.broadcast_to(images, (*images.shape[:3], shape[2]))
    pads = ((pad // 2, pad - pad // 2) for pad in (above, beside))
    return np.pad(images, ((0, 0), *pads, (0, 0)))


def hold_out(dataset: Dataset, share: float, judged: str = "test") -> Dataset:
    """A data set without the training images that are held out for choosing settings.

    Args:
      dataset: as it is.
      share: of the training images; drawn at random, but the same for all seeds of a run.
      judged: "test", or "validation", which puts them in the place of the test images.

    Returns:
      A data set of fewer training images. With share > 0 these are a copy in memory.

    Raises:
      UserError: a share that leaves less than two images on either side, or none to judge.
    """
    if judged == "validation" and not share:
        raise UserError(
            "evaluate.split=validation needs images held out: set data.validation_share"
        )
    if not share:
        return dataset
    count = len(dataset.train_images)
    held = round(share * count)
    if not 2 <= held <= count - 2:
        raise UserError(
            f"data.validation_share={share:g} holds out {held} of {count} training images: "
            "leave 2 or more on both sides"
        )
    drawn = np.random.default_rng(0).permutation(count)
    kept, held_out = np.sort(drawn[held:]), np.sort(drawn[:held])
    images, labels = dataset.train_images, dataset.train_labels
    found = dataset._replace(
        train_images=images[kept], train_labels=None if labels is None else labels[kept]
    )
    if judged == "test":
        return found
    return found._replace(
        test_images=np.asarray(images[held_out]),
        test_labels=None if labels is None else labels[held_out],
    )


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # takes a second to import, so only where needed

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.arange(len(images)) % 5 == 0
    arrays = (images[~test], digits.target[~test], images[test], digits.target[test])
    return _checked("digits", "digits", dict(zip(_ARRAYS, arrays, strict=True)))


def _checked(name: str, source: str, arrays: dict[str, Any]) -> Dataset:
    """The data set in these arrays, or a UserError that names the source and the array."""
    arrays, splits = dict(arrays), ("train", "test")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray | jax.Array):
            raise UserError(f"{source}: {key} is a {type(array).__name__}: make it a NumPy array")
    for images in ("train_images", "test_images"):
        if images not in arrays:
            raise UserError(f"{source}: {images} is missing: add it as uint8 [N, height, width, C]")
        shape, dtype = arrays[images].shape, arrays[images].dtype
        if dtype != np.uint8:
            raise UserError(f"{source}: {images} is {dtype}: convert it to uint8 in 0..255")
        if len(shape) not in (3, 4):
            raise UserError(f"{source}: {images} has shape {shape}: make it [N, height, width, C]")
        if 0 in shape or shape[0] < 2:  # batch statistics need two
            raise UserError(f"{source}: {images} has shape {shape}: give it 2 or more images")
        if len(shape) == 3:
            arrays[images] = arrays[images][..., None]
        elif shape[3] not in (1, 3):
            raise UserError(
                f"{source}: {images} has shape {shape}, which is {shape[3]} channels: "
                f"make it [N, height, width, 1 or 3]{_transpose(images, shape)}"
            )
    train, test = (arrays[f"{split}_images"].shape[1:] for split in splits)
    if train != test:
        raise UserError(f"{source}: train_images are {train} and test_images {test}: make them one")
    labelled = [split for split in splits if f"{split}_labels" in arrays]
    if len(labelled) == 1:
        missing = "test_labels" if labelled == ["train"] else "train_labels"
        raise UserError(f"{source}: {missing} is missing: give labels to both splits or to neither")
    for split in labelled:
        labels, count = np.asarray(arrays[f"{split}_labels"]), len(arrays[f"{split}_images"])
        where = f"{source}: {split}_labels"
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{where} is {labels.dtype}: convert it to integers")
        if labels.shape != (count,):
            raise UserError(
                f"{where} has shape {labels.shape}: give one label an image, ({count},)"
            )
        if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
            raise UserError(f"{where} leaves 0..2³¹-1: number the classes from 0")
        arrays[f"{split}_labels"] = labels.astype(np.int32)
    return Dataset(name, **{key: arrays.get(key) for key in _ARRAYS})  # type: ignore[arg-type]


def _transpose(images: str, shape: tuple[int, ...]) -> str:
    """What brings the channels to the end, if they are elsewhere."""
    for axis, order in ((1, "0, 2, 3, 1"), (2, "3, 0, 1, 2")):  # PyTorch's, MATLAB's
        if shape[axis] in (1, 3):
            return f", as {images}.transpose({order}) does"
    return ""
