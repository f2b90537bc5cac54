"""Checkpoints of a run: a thin layer over orbax that knows a damaged one before it reads it."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
import warnings
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from hsjax import devices
from hsjax.errors import UserError
from hsjax.files import (
    own_folder,
    plainly_named,
    reason,
    remove,
    rename,
    sync,
    writing,
)

_SUMS = "sha256.json"  # inside each checkpoint: what its files must hash to


class Checkpoints:
    """The newest few states of a run, in `folder`, by step; use it in a `with` statement.

    Each is written to a temporary folder that is renamed once it is on the disk, with the SHA-256
    of all its files: a killed run or a full disk leaves no half-written one, and a file damaged
    later (a broken copy) is detected, where orbax may read the damage as numbers.

    With several processes, only the first one reads and writes; to the others the folder seems
    empty. If `folder` is a link, it is read, but a new folder replaces it before any writing.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._reads_back = False  # whether this process has read one back
        self._orbax: Any = None
        if devices.is_first():
            alone = ocp.options.MultiprocessingOptions(
                active_processes={0}, barrier_sync_key_prefix="first"
            )
            self._orbax = ocp.Checkpointer(
                ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                multiprocessing_options=alone,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._orbax:
            self._orbax.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first, damaged or not."""
        names = os.listdir(self.folder) if self._orbax and self.folder.is_dir() else ()
        steps = [int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,9}", name)]
        return sorted(step for step in steps if (self.folder / str(step)).is_dir())

    def probe(self) -> None:
        """Find out, before a long training, whether checkpoints can be written and read back.

        Raises:
          UserError: they can't be.
        """
        if self._orbax:
            beside = self.folder.with_name(f".probe.{secrets.token_hex(4)}.tmp")
            with self._written(beside, {"probe": np.zeros(3, np.float32)}):
                self._reads_back = False  # the first real one is checked again

    def save(self, step: int, state: Any, best: int | None = None) -> None:
        """Write a pytree of arrays as the checkpoint of this step, unless there is one.

        Args:
          step: steps done.
          state: after them.
          best: the step of a checkpoint that is kept although others are newer.

        Raises:
          UserError: it can't be written; existing checkpoints are kept.
        """
        if not self._orbax or step in self.steps():
            return
        if jax.process_count() > 1:
            state = jax.device_get(state)  # orbax refuses the arrays of a single process
        with writing(self.folder):
            own_folder(self.folder)
            # New names: an earlier one that failed may still be writing to its own.
            token = secrets.token_hex(4)
            new, old = self.folder / f".unfinished-{token}", self.folder / f".old-{token}"
            for pattern in (".unfinished-*", ".old*"):  # left by an error or a kill
                for left in self.folder.glob(pattern):
                    remove(left)
            with self._written(new, _as_dict(state)):
                there = self.folder / str(step)
                if os.path.lexists(there):  # a file, or a link to nowhere
                    remove(there)
                rename(new, there)
            for past in (step for step in self.steps()[: -self.keep] if step != best):
                rename(self.folder / str(past), old)  # in one go, then file by file
                remove(old)

    @contextlib.contextmanager
    def _written(self, new: Path, arrays: dict[str, Any]) -> Iterator[None]:
        """Write arrays to a new folder, which is removed at the end unless it has been renamed."""
        with writing(new.parent):
            new.mkdir()
            try:
                with plainly_named(new) as plain, _plain_errors():
                    self._orbax.save(plain / "default", args=ocp.args.StandardSave(arrays))
                    if not self._reads_back:
                        self._check_reads_back(plain / "default", arrays)
                (new / _SUMS).write_text(json.dumps(_sums(new)))
                sync(new)
                yield
            finally:
                remove(new)

    def _check_reads_back(self, path: Path, arrays: dict[str, Any]) -> None:
        on_host = {name: np.empty(x.shape, x.dtype) for name, x in arrays.items()}
        try:
            found = _shapes(self._orbax.restore(path, args=ocp.args.StandardRestore(on_host)))
            if found != _shapes(arrays):
                raise ValueError("other arrays come back")
        except Exception as error:
            raise UserError(
                f"{self.folder}: a checkpoint can't be read back from there ({reason(error)}): "
                "choose another --workdir"
            ) from error
        self._reads_back = True

    def restore(self, like: Any, *, move: bool = True, only: int | None = None) -> Any | None:
        """The newest good state, or None if there is none; damaged ones get a warning.

        Args:
          like: a state of the same structure; its values don't matter.
          move: whether to move damaged checkpoints to `<folder>-damaged`.
          only: the step of the wanted checkpoint, if not the newest.

        Raises:
          UserError: a good state whose arrays have other shapes or can't be read, or a damaged
            one can't be moved.
        """
        if self._orbax is None:
            return None
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _as_dict(like)
        )
        steps = self.steps() if only is None else [only]
        for step in reversed(steps):
            if _is_good(self.folder / str(step)):
                restored = self._read(step, target)
                return jax.tree.unflatten(jax.tree.structure(like), restored.values())
            moved = ""
            if move and not self.folder.is_symlink():
                aside = self.folder.with_name(f"{self.folder.name}-damaged")
                with writing(aside):
                    own_folder(aside)
                    remove(aside / str(step))
                    rename(self.folder / str(step), aside / str(step))
                moved = f"moved to {aside}, "
            instead = "using the one before it" if step != steps[0] else "there is none before it"
            logging.warning("the checkpoint of step %d is damaged: %s%s", step, moved, instead)
        return None

    def _read(self, step: int, target: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        assert self._orbax is not None
        try:
            # Shapes are checked first: if orbax fails, it leaves tasks behind that fail later.
            with plainly_named(self.folder / str(step)) as plain:
                held = ocp.PyTreeCheckpointHandler().metadata(plain / "default")
                target = _as_named_there(target, held.tree)
                if _shapes(held.tree) == _shapes(target):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # about the topology it was saved on
                        args = ocp.args.StandardRestore(target)
                        restored = self._orbax.restore(plain / "default", args=args)
                        return {name: restored[name] for name in target}
        except Exception as error:  # made by hand, as the files hash to what they should
            raise UserError(
                f"{self.folder / str(step)} can't be read ({reason(error)}): move that folder "
                "elsewhere to continue from an earlier checkpoint, or choose another --workdir"
            ) from error
        raise UserError(
            f"{self.folder / str(step)} is of another run of this config "
            f"({_differing(_shapes(held.tree), _shapes(target))}): go on with the data, the "
            "networks (networks=...) and the version of hsjax that it began with, or choose "
            "another --workdir"
        )


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the OSError behind an error of orbax, without the tracebacks that its threads print.

    After an error, late writes find their event loop closed, or raise errors that nobody awaits.
    Their messages are suppressed for the rest of the process.
    """

    def but_late_writes(unraisable) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    loggers, before = (logging.get_absl_logger(), getLogger("asyncio")), sys.unraisablehook
    failed_before = any(_is_not_orbax in logger.filters for logger in loggers)
    for logger in loggers:
        logger.addFilter(_is_not_orbax)
    sys.unraisablehook = but_late_writes
    try:
        yield
    except ValueError as error:  # tensorstore's
        warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        raise
    else:
        sys.unraisablehook = before
        if not failed_before:
            for logger in loggers:
                logger.removeFilter(_is_not_orbax)


def _is_not_orbax(record) -> bool:
    late = record.name == "asyncio" and "exception was never retrieved" in record.getMessage()
    return not late and "orbax" not in record.pathname


def _as_dict(state: Any) -> dict[str, jax.Array]:
    """Leaves by path, in the order of the pytree: names that don't depend on its classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {f"{i:04d}{jax.tree_util.keystr(path)}": leaf for i, (path, leaf) in enumerate(leaves)}


def _as_named_there(arrays: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """The same arrays, under the names of a version that called the regulariser `kl`."""
    names = {name[4:].replace("['kl']", "['regulariser']"): name for name in there}
    return {names.get(name[4:], name): array for name, array in arrays.items()}


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _differing(there: dict[str, tuple], here: dict[str, tuple]) -> str:
    """The first array that differs between two states, and how many more do."""
    names = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
    first = names[0]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{first[4:].lstrip('.')} is {there.get(first)}, here {here.get(first)}{more}"


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of all files except those that systems add, such as ._x."""
    files = (f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    names = sorted(str(f.relative_to(folder)) for f in files if f != folder / _SUMS)
    return {name: _sum(folder / name) for name in names}


def _sum(file: Path) -> str:
    return hashlib.sha256(_content(file)).hexdigest()


def _content(file: Path) -> bytes:
    if not file.is_file():  # a pipe might never end
        raise FileNotFoundError(file)
    return file.read_bytes()


def _is_good(folder: Path) -> bool:
    """Whether all files that were saved are unchanged; other files are ignored."""
    try:
        sums = json.loads(_content(folder / _SUMS))
        return bool(sums) and all(_sum(folder / name) == x for name, x in sums.items())
    except (AttributeError, OSError, RecursionError, TypeError, ValueError):
        return False
