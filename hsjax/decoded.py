"""Sets of encoded images, decoded once into raw files that later runs map into memory."""

import contextlib
import errno
import io
import json
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from absl import logging

from hsjax.errors import UserError
from hsjax.files import reason, remove, remove_orphans

_INDEX = "index.json"  # beside the arrays: key, shapes, checksums, what was skipped
_NAMED = 5  # unreadable images that a message names


class Source(NamedTuple):
    """A set of encoded images that are read one by one, from any thread.

    Grey ones, [H, W, 1], become RGB if any image of the set is.
    """

    name: str  # as messages call it
    key: dict  # all that its decoded images depend on, as JSON has it
    counts: dict[str, int]  # of the images of each split
    read: Callable[[str, int], tuple[np.ndarray, int]]  # split, i -> uint8 [H, W, C], label or -1
    where: Callable[[str, int], str]  # split, i -> how messages call that image
    caches: list[Path]  # folders, there or not, that may keep the decoded arrays, best first


def arrays(source: Source, *, skip: bool) -> dict[str, np.ndarray]:
    """The images and labels of a source, decoded unless one of its caches holds them.

    Args:
      source: to decode.
      skip: leave out images that can't be read, with a warning, instead of refusing the set.

    Returns:
      "train_images", "train_labels", ...: uint8 [N, H, W, C] and int32 [N], mapped into memory
      from a cache, or held in it where none can be written. No labels where one is missing.

    Raises:
      UserError: images that can't be read (named and counted), or of different shapes.
    """
    for folder in source.caches:
        remove_orphans(folder.parent, ".hsjax-*")
    for folder in filter(os.path.lexists, source.caches):
        try:
            skipped, found = _mapped(source, folder)
        except Exception:  # a damaged file fails in a dozen ways
            logging.warning("%s is damaged or out of date: decoding %s again", folder, source.name)
            continue
        _judge(source, skipped, skip)
        return found
    failure = "no folder to write to"
    for folder in source.caches:
        try:
            _write(source, folder, skip)
            return _mapped(source, folder)[1]
        except OSError as error:  # read-only, full
            failure = reason(error)
    logging.warning(
        "the decoded images of %s could not be kept (%s): the next run decodes them again",
        source.name,
        failure,
    )
    buffers: dict[str, io.BytesIO] = {}

    def buffer(name):
        buffers[name] = io.BytesIO()
        return contextlib.nullcontext(buffers[name])

    index = _decode(source, buffer, skip)
    return _labelled(
        {
            name: np.frombuffer(buffers[name].getbuffer(), about["dtype"]).reshape(about["shape"])
            for name, about in index["arrays"].items()
        }
    )


def _mapped(source: Source, folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What _write wrote to the folder; an error unless it is there and unchanged."""
    index = json.loads((folder / _INDEX).read_text())
    if index["key"] != source.key:
        raise ValueError("of another set")
    found: dict[str, np.ndarray] = {}
    for name, about in index["arrays"].items():
        if name not in os.listdir(folder):  # it could be a path to elsewhere
            raise ValueError("of other files")
        found[name] = np.memmap(folder / name, about["dtype"], "r", shape=tuple(about["shape"]))
        if zlib.crc32(found[name].data) != about["crc32"]:
            raise ValueError("not what was written")
    return dict(index["skipped"]), _labelled(found)


def _labelled(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same without labels if any is -1."""
    labels = [name for name in found if name.endswith("_labels")]
    if all(np.all(found[name] >= 0) for name in labels):
        return found
    return {name: array for name, array in found.items() if name not in labels}


def _write(source: Source, folder: Path, skip: bool) -> None:
    """Writes all of the folder or none of it, whatever happens midway."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():  # damaged or out of date
        remove(folder)
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    new.mkdir()
    try:
        index = _decode(source, lambda name: open(new / name, "wb"), skip)
        with open(new / _INDEX, "w") as file:
            json.dump(index, file, indent=2)
        os.replace(new, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


class _LateColour(Exception):
    """An image is RGB, but grey ones have been written before it."""


_Open = Callable[[str], contextlib.AbstractContextManager[BinaryIO]]


def _decode(source: Source, open_array: _Open, skip: bool) -> dict[str, Any]:
    """Writes the bytes of the arrays, image after image; returns what _INDEX holds."""
    try:
        return _decode_as(source, open_array, skip, rgb=False)
    except _LateColour:
        return _decode_as(source, open_array, skip, rgb=True)


def _decode_as(source: Source, open_array: _Open, skip: bool, *, rgb: bool) -> dict[str, Any]:
    shape: tuple[int, ...] = ()
    index: dict[str, Any] = {"key": source.key, "arrays": {}, "skipped": {}}
    total, done = sum(source.counts.values()), 0
    try:
        for split, count in source.counts.items():
            labels, images_crc = [], 0
            with (
                open_array(f"{split}_images") as file,
                contextlib.closing(_read(source, split, count)) as images,
            ):
                for i, found in enumerate(images):
                    done += 1
                    if done % 100 == 0 and sys.stderr.isatty():
                        print(f"\rreading {source.name}: {done}/{total}", end="", file=sys.stderr)
                    if isinstance(found, Exception):
                        index["skipped"][source.where(split, i)] = reason(found)
                        continue
                    image, label = found
                    if image.shape[2] == 1 and (rgb or shape[2:] == (3,)):
                        image = image.repeat(3, axis=2)
                    shape = shape or image.shape
                    if image.shape == (*shape[:2], 3) and shape[2] == 1:
                        raise _LateColour
                    if image.shape != shape:
                        raise UserError(
                            f"{source.name} has images of {shape} and {image.shape}: scale them "
                            "to one size with --config.data.size=PIXELS"
                        )
                    content = image.tobytes()
                    images_crc = zlib.crc32(content, images_crc)
                    file.write(content)
                    labels.append(label)
            content = np.array(labels, np.int32).tobytes()
            with open_array(f"{split}_labels") as file:
                file.write(content)
            index["arrays"] |= {
                f"{split}_images": _about((len(labels), *shape), "uint8", images_crc),
                f"{split}_labels": _about((len(labels),), "int32", zlib.crc32(content)),
            }
    finally:
        if done >= 100 and sys.stderr.isatty():
            print(file=sys.stderr)
    _judge(source, index["skipped"], skip)
    for name, about in index["arrays"].items():
        if not about["shape"][0]:
            raise UserError(f"{source.name}: {name} would be empty: there is no image to read")
    return index


def _about(shape, dtype, crc32):
    return {"shape": list(shape), "dtype": dtype, "crc32": crc32}


def _read(
    source: Source, split: str, count: int
) -> Generator[tuple[np.ndarray, int] | Exception, None, None]:
    """Each image of a split, in order, or what reading it raised; threads read ahead."""
    import grain  # half a second to import

    def read(i):
        try:
            return source.read(split, i)
        except Exception as error:  # a damaged image may raise any
            return error

    ahead = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=256)
    iterator = iter(grain.MapDataset.source(range(count)).map(read).to_iter_dataset(ahead))
    try:
        yield from iterator
    finally:
        iterator.close()


def _judge(source: Source, skipped: dict[str, str], skip: bool) -> None:
    """Refuse a set with images that can't be read, or warn that they are left out."""
    if not skipped:
        return
    names = ", ".join(list(skipped)[:_NAMED])
    names += f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    total, why = sum(source.counts.values()), next(iter(skipped.values()))
    if not skip:
        raise UserError(
            f"{len(skipped)} of the {total} images of {source.name} can't be read: {names} "
            f"({why}); mend the set, or leave them out with --config.data.corrupt=skip"
        )
    logging.warning(
        "leaving out %d of the %d images of %s, which can't be read: %s (%s)",
        len(skipped),
        total,
        source.name,
        names,
        why,
    )
