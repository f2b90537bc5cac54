"""Where encoded images come from: folders of files and tensorflow-datasets sets."""

import atexit
import contextlib
import hashlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging as absl_logging
from PIL import EpsImagePlugin, Image, ImageOps

from hsjax.decoded import Source
from hsjax.errors import UserError
from hsjax.files import plainly_named, reason, user_cache

SPLITS = ("train", "test")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # whatever a name says: others may run programs
_GREY = ("1", "L", "LA")
_NO_DATA = ("__MACOSX", "@eaDir")  # what archives and network drives leave in a folder
_LIKE_SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")
_KNOWN = (
    "digits, a path to an .npz file or (with a slash at its end) to a folder of images, "
    "or the name of a tensorflow-datasets image set"
)


def _square(image: Image.Image, size: int, crop: int) -> Image.Image:
    """The middle square of `crop` pixels (0: the largest), scaled to `size` (0: as it is)."""
    if not size and not crop:
        return image
    side, (width, height) = crop or min(image.size), image.size
    if side > min(image.size):
        raise ValueError(f"{width}x{height} pixels are fewer than data.crop={crop}")
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    # Pillow averages over the pixels that scaling down leaves out, whatever the filter.
    return image.resize((size, size), Image.Resampling.BICUBIC) if size else image


def _grey_or_rgb(file: Image.Image) -> Image.Image:
    """The image turned upright, on white where it is transparent, in mode L or RGB.

    A palette image is grey if all its visible colours are.
    """
    if file.mode.startswith(("I", "F")):
        raise ValueError("its pixels do not have 8 bits")
    image = ImageOps.exif_transpose(file)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image, grey = image.convert("RGB"), file.mode in _GREY
    if file.mode in ("P", "PA"):
        pixels = np.asarray(image)
        grey = bool((pixels == pixels[..., :1]).all())
    return image.getchannel("R") if grey else image


def folder_of_images(name: str, size: int, crop: int, test_share: float) -> Source:
    """The image files below NAME/train and NAME/test, or below NAME if it has neither.

    Their labels are the folders they lie in, numbered in alphabetical order; those directly in
    train and test, or in NAME, have none. Links to folders are followed, but none back to a folder
    around it. What begins with a dot, __MACOSX and @eaDir are left out.

    Without train and test, the test split is the share of images (at least two) whose paths in
    NAME have the smallest SHA-256; so it is the same on every machine.

    An image is turned as its EXIF orientation says and laid on white where it is transparent. All
    become RGB if any has colours.

    Raises:
      UserError: a folder is missing or can't be read, or some images have a label and others none.
    """
    root = Path(os.path.abspath(os.path.expanduser(name)))
    split_by_us = not any((root / split).is_dir() for split in SPLITS)
    if split_by_us:
        files = _share(root, _image_files(root), test_share)
        roots = dict.fromkeys(SPLITS, root)
    else:
        roots = {split: root / split for split in SPLITS}
        files = {split: _image_files(roots[split]) for split in SPLITS}
    folders = {split: [_class_of(roots[split], file) for file in files[split]] for split in SPLITS}
    classes = sorted({folder for listed in folders.values() for folder in listed})
    if "" in classes and len(classes) > 1:
        raise UserError(f"{name}: put all of its images into folders of their classes, or none")
    unlabelled = classes == [""]

    def read(split, i):
        with Image.open(files[split][i], formats=_FORMATS) as file:
            pixels = np.asarray(_square(_grey_or_rgb(file), size, crop))
        label = -1 if unlabelled else classes.index(folders[split][i])
        return pixels.reshape(*pixels.shape[:2], -1), label

    names = {split: [str(file.relative_to(root)) for file in files[split]] for split in SPLITS}
    stamps = [_stamp(file) for split in SPLITS for file in files[split]]
    behind = sorted({os.path.realpath(f) for f in {f.parent for s in SPLITS for f in files[s]}})
    cache, of_share = user_cache(), f" {test_share}" * split_by_us
    folder = f"{_stem(root.name, size, crop)}-{_hash(str(root) + of_share)[:12]}"
    return Source(
        name=name,
        key={
            "files": _hash(repr((names, stamps, behind))),
            "size": size,
            "crop": crop,
            "ground": "white",  # before, transparency was dropped
        },
        counts={split: len(files[split]) for split in SPLITS},
        read=read,
        where=lambda split, i: names[split][i],
        caches=[cache / folder] if cache else [],
    )


def _image_files(folder: Path) -> list[Path]:
    """Those in a folder and below it, sorted by their paths."""
    above = {_identity(parent) for parent in folder.parents if parent.exists()}
    return sorted(_walk(folder, above))


def _walk(folder: Path, above: set[tuple[int, int]]) -> Iterator[Path]:
    """The image files below a folder, unless it is one of those above it."""
    try:
        identity = _identity(folder)
        entries = [] if identity in above else sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"{folder} can't be read ({error.strerror}): a folder of images holds them in its "
            "folders train and test, or in folders of their classes alone"
        ) from error
    for path in (folder / entry for entry in entries):
        if path.name.startswith(".") or path.name in _NO_DATA:
            continue
        if path.is_dir():
            yield from _walk(path, above | {identity})
        elif path.suffix.lower() in SUFFIXES:
            yield path
        elif path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nowhere: mend or remove it")


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


def _share(root: Path, files: list[Path], test_share: float) -> dict[str, list[Path]]:
    """The files of each split."""
    paths = {file: file.relative_to(root) for file in files}
    for folder in {parent for path in paths.values() for parent in path.parents}:
        if folder.name.lower() in _LIKE_SPLITS:
            raise UserError(
                f"{root / folder} looks like a split: "
                "give data.name the folder that holds train and test, spelt so"
            )
    count = min(max(2, round(test_share * len(files))), max(0, len(files) - 2))
    test = set(sorted(files, key=lambda file: _hash(paths[file].as_posix()))[:count])
    return {
        "train": [file for file in files if file not in test],
        "test": [file for file in files if file in test],
    }


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file, to find out whether it has changed."""
    try:
        return file.stat().st_size, file.stat().st_mtime_ns
    except OSError:  # a broken link: reading it will say so
        return 0, 0


def _class_of(split: Path, file: Path) -> str:
    """The folder of the split that holds the file, "" for the split itself."""
    return "" if file.parent == split else file.relative_to(split).parts[0]


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _stem(name: str, size: int, crop: int) -> str:
    """The name of a set's decoded images."""
    scaled = f"-{size}" * bool(size) + f"-crop{crop}" * bool(crop)
    return f"hsjax-{name.replace('/', '-')}{scaled}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps unimportant messages of tfds (such as that OpenCV is missing) off the terminal."""

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


def tfds_set(name: str, directory: str, size: int, crop: int) -> Source:
    """A tensorflow-datasets image set, which is prepared if necessary and possible.

    If it has no test split, its validation split is used.

    Raises:
      UserError: the set is unknown, can't be prepared or read, or is not made of uint8 images.
    """
    plain = directory
    if directory and "://" not in directory:
        directory = os.path.abspath(os.path.expanduser(directory))
        link = contextlib.ExitStack()
        plain = str(link.enter_context(plainly_named(Path(directory))))
        atexit.register(link.close)  # the records are read later
    with quiet():
        builder = _prepared_builder(name, plain)
    info, folder = builder.info, builder.data_path
    if plain != directory:
        folder = Path(str(folder).replace(plain, directory, 1))
    where = f"{name} in {folder}"
    splits = {"train": "train", "test": "test" if "test" in info.splits else "validation"}
    for split in splits.values():
        if split not in info.splits:
            raise UserError(f"{where} has no {split} split: choose another set")
    records, with_labels = _records(builder, splits, where)

    def read(split, i):
        example = records[split][i]
        image = example["image"]
        if size or crop:
            grey = image.shape[-1] == 1
            image = _square(Image.fromarray(image[..., 0] if grey else image), size, crop)
            image = np.asarray(image).reshape(image.height, image.width, -1)
        return image, int(example["label"]) if with_labels else -1

    return Source(
        name=where,
        key={
            "set": info.full_name,
            "info": hashlib.sha256((folder / "dataset_info.json").read_bytes()).hexdigest(),
            "size": size,
            "crop": crop,
        },
        counts={split: info.splits[theirs].num_examples for split, theirs in splits.items()},
        read=read,
        where=lambda split, i: f"{splits[split]} image {i}",
        caches=_tfds_caches(info.full_name, Path(folder), _stem(info.full_name, size, crop)),
    )


def _records(builder: Any, splits: dict[str, str], where: str) -> tuple[dict[str, Any], bool]:
    """The records of each split, and whether they have a label."""
    with quiet():
        import tensorflow_datasets as tfds

    # tfds leaves the format of a record to Pillow, which would run Ghostscript on PostScript.
    EpsImagePlugin.gs_binary = False
    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image = features.get("image")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise UserError(f"{where} has no uint8 feature 'image': choose an image set")
    with_labels = isinstance(features.get("label"), tfds.features.ClassLabel)
    try:
        with quiet():
            records = {
                split: builder.as_data_source(split=theirs) for split, theirs in splits.items()
            }
    except NotImplementedError as error:
        raise UserError(
            f"{where} is prepared as {builder.info.file_format.value}, which TensorFlow alone "
            "reads: pass another --config.data.dir=DIR to prepare it there as array_record"
        ) from error
    except Exception as error:
        raise UserError(
            f"{where} cannot be read ({reason(error)}): if it is damaged, delete that folder "
            "and prepare or copy the set again"
        ) from error
    return records, with_labels


def _prepared_builder(name: str, directory: str) -> Any:
    """The tfds builder of a set that is on disk, after preparing it if that can be done here."""
    import tensorflow_datasets as tfds  # not at the top, so that `import hsjax` stays light

    def build(**options: str) -> Any:
        try:
            return tfds.builder(name, data_dir=directory or None, **options)
        except tfds.core.DatasetNotFoundError as error:
            meant = f"write {name}/ for the folder; " * os.path.isdir(name)
            raise UserError(
                f"no data set {name!r}{f' in {directory}' * bool(directory)}: {meant}data.name is "
                f"{_KNOWN}"
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
            f"{where}: in a clone, `pip install '.[data]'` and run again on a machine with network "
            "to download and prepare it, or copy a prepared folder and pass --config.data.dir=DIR"
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


def _tfds_caches(full_name: str, folder: Path, stem: str) -> list[Path]:
    """Folders for decoded images: beside the set, else in the user's cache."""
    root = Path(os.path.abspath(folder.parents[full_name.count("/")]))
    # A bucket is no place to write to, nor is a folder marked read-only, though root could.
    writable = root.is_dir() and root.stat().st_mode & 0o222
    paths = [root / stem] if writable else []
    if cache := user_cache():
        paths.append(cache / f"{stem}-{_hash(str(root))[:12]}")
    return paths
