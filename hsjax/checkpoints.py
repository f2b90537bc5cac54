"""Checkpoints of a run: a thin layer over orbax that knows a damaged one before it reads it."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from hsjax import devices
from hsjax.config import UserError
from hsjax.files import reason, rename, sync, writing

_SUMS = "sha256.json"  # inside each checkpoint: what its files must hash to


class Checkpoints:
    """The newest few states of a run, in `folder`, by step; use it in a `with` statement.

    Each is written to a temporary folder that is renamed once it is on the disk, with the SHA-256
    of all its files: a killed run or a full disk leaves no half of one, and a file damaged later
    (a broken copy) is found; orbax reads some damage as numbers.

    Of several processes the first one reads and writes; in the others the folder seems empty.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._orbax = None
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
        """The steps there are checkpoints of, oldest first, good or not."""
        names = os.listdir(self.folder) if self._orbax and self.folder.is_dir() else ()
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, state: Any) -> None:
        """Write a pytree of arrays as the checkpoint of this step, unless there is one.

        Raises:
          UserError: it can't be written; those there are stay.
        """
        if not self._orbax or step in self.steps():
            return
        if jax.process_count() > 1:
            state = jax.device_get(state)  # orbax refuses the arrays of a single process
        # A name that nothing of an earlier one, which failed, is still being written to.
        new, old = self.folder / f".unfinished-{secrets.token_hex(4)}", self.folder / ".old"
        with writing(self.folder):
            for left in (*self.folder.glob(".unfinished-*"), old):  # by an error or a kill
                shutil.rmtree(left, ignore_errors=True)
            new.mkdir(parents=True)
            try:
                with _plain_errors():
                    args = ocp.args.StandardSave(_as_dict(state))
                    self._orbax.save(new / "default", args=args)
                (new / _SUMS).write_text(json.dumps(_sums(new)))
                sync(new)
                rename(new, self.folder / str(step))
            finally:
                shutil.rmtree(new, ignore_errors=True)
            for past in self.steps()[: -self.keep]:
                rename(self.folder / str(past), old)  # in one go, then file by file
                shutil.rmtree(old, ignore_errors=True)

    def restore(self, like: Any) -> Any | None:
        """The newest good state, or None if there is none.

        Damaged checkpoints are moved to `<folder>-damaged`, with a warning.

        Args:
          like: a state of the same structure; its values don't matter.

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
        for step in reversed(self.steps()):
            if _is_good(self.folder / str(step)):
                restored = self._read(step, target)
                return jax.tree.unflatten(jax.tree.structure(like), restored.values())
            aside = self.folder.with_name(f"{self.folder.name}-damaged")
            with writing(aside):
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)
                rename(self.folder / str(step), aside / str(step))
            logging.warning(
                "the checkpoint of step %d is damaged: moved to %s, using the one before it",
                step,
                aside,
            )
        return None

    def _read(self, step: int, target: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        assert self._orbax is not None
        try:
            # Asked before: orbax, when it fails, leaves tasks behind that fail later.
            path = self.folder / str(step) / "default"
            held = ocp.PyTreeCheckpointHandler().metadata(path)
            if _shapes(held.tree) == _shapes(target):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about the topology it was saved on
                    return self._orbax.restore(path, args=ocp.args.StandardRestore(target))
        except Exception as error:  # made by hand, as the files hash to what they should
            raise UserError(
                f"{self.folder / str(step)} can't be read ({reason(error)}): remove that folder "
                "to continue from an earlier checkpoint, or choose another --workdir"
            ) from error
        raise UserError(  # the config is the same: it's the data
            f"{self.folder} is of a run on other data (the arrays of step {step} have "
            "other shapes): choose another --workdir"
        )


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """The OSError behind an error of orbax, without the tracebacks that its threads print.

    After an error, writes that end late still find its event loop closed and say so: this stays
    unsaid for the rest of the process.
    """

    def elsewhere(record) -> bool:
        return "orbax" not in record.pathname

    def but_late_writes(unraisable) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    logger, before = logging.get_absl_logger(), sys.unraisablehook
    logger.addFilter(elsewhere)
    sys.unraisablehook = but_late_writes
    try:
        yield
        sys.unraisablehook = before
    except ValueError as error:  # tensorstore's
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        raise
    finally:
        logger.removeFilter(elsewhere)


def _as_dict(state: Any) -> dict[str, jax.Array]:
    """Leaves by path, in the order of the pytree: names that don't depend on its classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {f"{i:04d}{jax.tree_util.keystr(path)}": leaf for i, (path, leaf) in enumerate(leaves)}


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / _SUMS)
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _is_good(folder: Path) -> bool:
    try:
        return json.loads((folder / _SUMS).read_text()) == _sums(folder)
    except (OSError, RecursionError, ValueError):
        return False
