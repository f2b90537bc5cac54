"""A data set by name -> uint8 arrays on the host."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging as absl_logging

from hsjax.config import UserError
from hsjax.files import read_npz, reason, user_cache, write_npz

_CHUNK = 1000  # images decoded between two lines of progress
_KNOWN = "digits, a path to an .npz file, or the name of a tensorflow-datasets image set"


class Dataset(NamedTuple):
    """Images and labels of both splits; labels are None where a set has none."""

    name: str
    train_images: np.ndarray  # uint8 [N, height, width, channels]
    train_labels: np.ndarray | None  # int32 [N]
    test_images: np.ndarray  # uint8 [M, height, width, channels]
    test_labels: np.ndarray | None  # int32 [M]


_ARRAYS = Dataset._fields[1:]


def load(name: str, directory: str = "") -> Dataset:
    """Reads a data set into memory.

    Args:
      name: "digits" (8x8 grey digits bundled with scikit-learn), a path ending in ".npz", or a
        tensorflow-datasets image set as tfds spells it ("mnist", "name/config", "name:1.0.0").
        An .npz holds train_images and test_images, uint8 [N, height, width] or
        [N, height, width, channels], and may hold train_labels and test_labels, integers [N].
      directory: where tensorflow-datasets keeps prepared sets; "" is its own default
        (TFDS_DATA_DIR or ~/tensorflow_datasets). A set that is not there is downloaded and
        prepared, which needs TensorFlow; a prepared one is read without it, and its decoded
        arrays are kept beside it in hsjax-<name>-<version>.npz for the next time.

    Raises:
      UserError: the set is unknown, missing, damaged, or not made of uint8 images of one size.
    """
    if name == "digits":
        return _load_digits()
    if name.endswith(".npz"):
        path = os.path.expanduser(name)
        return _checked(name, path, read_npz(path, _ARRAYS))
    return _load_tfds(name, directory)


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # takes a second to import, so only where needed

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.arange(len(images)) % 5 == 0
    arrays = (images[~test], digits.target[~test], images[test], digits.target[test])
    return _checked("digits", "digits", dict(zip(_ARRAYS, arrays, strict=True)))


def _checked(name: str, source: str, arrays: dict[str, np.ndarray]) -> Dataset:
    """The data set in these arrays, or a UserError that names the source and the array."""
    arrays, splits = dict(arrays), ("train", "test")
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
    train, test = (arrays[f"{split}_images"].shape[1:] for split in splits)
    if train != test:
        raise UserError(f"{source}: train_images are {train} and test_images {test}: make them one")
    labelled = [split for split in splits if f"{split}_labels" in arrays]
    if len(labelled) == 1:
        missing = "test_labels" if labelled == ["train"] else "train_labels"
        raise UserError(f"{source}: {missing} is missing: give labels to both splits or to neither")
    for split in labelled:
        labels, count = arrays[f"{split}_labels"], len(arrays[f"{split}_images"])
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what tfds says in passing (such as that OpenCV is missing) off the terminal."""

    def keep(record: logging.LogRecord) -> bool:
        return "tensorflow_datasets" not in record.pathname or record.levelno >= logging.ERROR

    logger = absl_logging.get_absl_logger()
    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # only other people's code runs in here
            yield
    finally:
        logger.removeFilter(keep)


def _load_tfds(name: str, directory: str) -> Dataset:
    if directory and "://" not in directory:
        directory = os.path.abspath(os.path.expanduser(directory))
    with _quiet():
        builder = _prepared_builder(name, directory)
    info, folder = builder.info, builder.data_path
    splits = {"train": "train", "test": "test" if "test" in info.splits else "validation"}
    for split in splits.values():
        if split not in info.splits:
            raise UserError(f"{name} in {folder} has no {split} split: choose another set")
    key = {
        "set": info.full_name,
        "splits": {ours: info.splits[theirs].num_examples for ours, theirs in splits.items()},
        "info": hashlib.sha256((folder / "dataset_info.json").read_bytes()).hexdigest(),
    }
    caches = _cache_paths(info.full_name, Path(folder))
    for path in filter(os.path.exists, caches):
        try:
            arrays = read_npz(path, ("key", *_ARRAYS))
            if str(arrays.pop("key", "")) == json.dumps(key):
                return _checked(name, str(path), arrays)
        except UserError:
            pass
        absl_logging.warning("%s is damaged or out of date: decoding %s again", path, name)
    with _quiet():
        arrays = _decode(builder, splits, f"{name} in {folder}")
    dataset = _checked(name, f"{name} in {folder}", arrays)
    keep = {array: getattr(dataset, array) for array in arrays}
    for path in caches:
        try:
            write_npz(path, {"key": np.array(json.dumps(key)), **keep})
            break
        except (OSError, ValueError) as error:  # read-only, full, or zipfile's word for full
            failure = reason(error)
    else:
        absl_logging.warning(
            "the decoded images of %s could not be kept (%s): the next run decodes them again",
            *(name, failure if caches else "no folder to write to"),
        )
    return dataset


def _prepared_builder(name: str, directory: str) -> Any:
    """The tfds builder of a set that is on disk, after preparing it if that can be done here."""
    import tensorflow_datasets as tfds  # not at the top, so that `import hsjax` stays light

    def build(**options: str) -> Any:
        try:
            return tfds.builder(name, data_dir=directory or None, **options)
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(
                f"no data set {name!r}{f' in {directory}' * bool(directory)}: data.name is {_KNOWN}"
            ) from error
        except Exception as error:  # a wrong version or config, a damaged dataset_info.json
            raise UserError(
                f"cannot open data set {name!r} ({reason(error)}): data.name is {_KNOWN}"
            ) from error

    builder = build()
    if builder.is_prepared():
        return builder
    where = f"{name} is not prepared in {builder.data_path}"
    if not _has_tensorflow():
        raise UserError(
            f"{where}: `pip install 'hsjax[data]'` and run again on a machine with a network to "
            "download and prepare it, or copy a prepared folder and pass --config.data.dir=DIR"
        )
    try:
        _hide_gpus_from_tensorflow()
        builder = build(file_format="array_record")  # the format that reads without TensorFlow
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"{where}, and preparing it failed ({reason(error)}): mend that and run again, "
            "or copy a prepared folder and pass --config.data.dir=DIR"
        ) from error
    return builder


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _hide_gpus_from_tensorflow() -> None:
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # it would take the memory that JAX needs


def _decode(builder: Any, splits: dict[str, str], source: str) -> dict[str, np.ndarray]:
    """The arrays of a prepared set, decoded image by image."""
    import tensorflow_datasets as tfds

    info, features = builder.info, builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image = features.get("image")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise UserError(f"{source} has no uint8 feature 'image': choose an image set")
    with_labels = isinstance(features.get("label"), tfds.features.ClassLabel)
    arrays, done = {}, 0
    total = sum(info.splits[split].num_examples for split in splits.values())
    try:
        for ours, theirs in splits.items():
            records = builder.as_data_source(split=theirs)
            images, labels = [], []
            for start in range(0, len(records), _CHUNK):
                keys = range(start, min(start + _CHUNK, len(records)))
                for example in records.__getitems__(keys):
                    images.append(example["image"])
                    labels.append(example["label"] if with_labels else -1)
                    if images[-1].shape != images[0].shape:
                        raise UserError(
                            f"{source} has images of {images[0].shape} and {images[-1].shape}: "
                            "choose a set whose images have one size, or save yours as an .npz"
                        )
                done += len(keys)
                if sys.stderr.isatty():
                    print(f"\rreading {info.full_name}: {done}/{total}", end="", file=sys.stderr)
            arrays[f"{ours}_images"] = np.array(images)
            arrays[f"{ours}_labels"] = np.array(labels)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{source} is prepared as {info.file_format.value}, which TensorFlow alone reads: "
            "pass another folder as --config.data.dir=DIR to prepare it there as array_record"
        ) from error
    except Exception as error:
        raise UserError(
            f"{source} cannot be read ({reason(error)}): if it is damaged, delete that folder "
            "and prepare or copy the set again"
        ) from error
    finally:
        if done and sys.stderr.isatty():
            print(file=sys.stderr)
    if any(np.any(arrays[f"{split}_labels"] < 0) for split in splits):  # tfds' mark for no label
        del arrays["train_labels"], arrays["test_labels"]
    return arrays


def _cache_paths(full_name: str, folder: Path) -> list[Path]:
    """Where a set's decoded arrays may be kept, best first: beside it, else in the user's cache."""
    root = Path(os.path.abspath(folder.parents[full_name.count("/")]))
    stem = f"hsjax-{full_name.replace('/', '-')}"
    # A bucket is no place to write to, nor is a folder marked read-only, though root could.
    writable = root.is_dir() and root.stat().st_mode & 0o222
    paths = [root / f"{stem}.npz"] if writable else []
    if cache := user_cache():
        of_root = hashlib.sha256(str(root).encode()).hexdigest()[:12]
        paths.append(cache / f"{stem}-{of_root}.npz")
    return paths
