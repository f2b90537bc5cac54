"""Checkpoints of a run: a thin layer over orbax that knows a damaged one before it reads it."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from hsjax import devices
from hsjax.config import UserError
from hsjax.files import reason

_SUMS = "sha256.json"  # inside each checkpoint: what its files must hash to


class Checkpoints:
    """The newest few states of a run, in `folder`, by step; use it in a `with` statement.

    Orbax writes each one to a temporary folder and renames it, so a killed run leaves no half of
    one. A file damaged later (a full disk, a broken copy) is found by its SHA-256: orbax reads
    some damage as numbers.

    Of several processes the first one reads and writes; in the others the folder seems empty.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder).absolute()
        self._manager = None
        if devices.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    enable_async_checkpointing=False,
                    create=False,  # orbax can't, alone
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        active_processes={0}, barrier_sync_key_prefix="first"
                    ),
                ),
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._manager:
            self._manager.close()

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, oldest first, good or not."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, step: int, state: Any) -> None:
        """Write a pytree of arrays as the checkpoint of this step, unless there is one."""
        if not self._manager or step in self.steps():
            return
        if jax.process_count() > 1:
            state = jax.device_get(state)  # orbax refuses the arrays of a single process
        self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)))
        folder = self.folder / str(step)
        (folder / _SUMS).write_text(json.dumps(_sums(folder)))

    def restore(self, like: Any) -> Any | None:
        """The newest good state, or None if there is none.

        Damaged checkpoints are moved to `<folder>-damaged`, with a warning.

        Args:
          like: a state of the same structure; its values don't matter.

        Raises:
          UserError: a state with good files whose arrays have other shapes or can't be read.
        """
        if self._manager is None:
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
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / str(step), ignore_errors=True)
            shutil.move(self.folder / str(step), aside / str(step))
            self._manager.reload()
            logging.warning(
                "the checkpoint of step %d is damaged: moved to %s, using the one before it",
                step,
                aside,
            )
        return None

    def _read(self, step: int, target: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        assert self._manager is not None
        try:
            # Asked before: orbax, when it fails, leaves tasks behind that fail later.
            held = ocp.PyTreeCheckpointHandler().metadata(self.folder / str(step) / "default")
            if _shapes(held.tree) == _shapes(target):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about the topology it was saved on
                    return self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:  # made by hand, as the files hash to what they should
            raise UserError(
                f"{self.folder / str(step)} can't be read ({reason(error)}): remove that folder "
                "to continue from an earlier checkpoint, or choose another --workdir"
            ) from error
        raise UserError(  # the config is the same: it's the data
            f"{self.folder} is of a run on other data (the arrays of step {step} have "
            "other shapes): choose another --workdir"
        )


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
