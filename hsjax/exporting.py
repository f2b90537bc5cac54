"""A trained model as a folder that others can open: weights, fits of samplers, a card.

The folder holds card.json, README.md (the card for people), the weights (model.safetensors or
model.npz) and the parameters of fitted samplers (samplers, likewise). Nothing in it is executed.
"""

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from hsjax import cards, published
from hsjax.config import from_json, read_record
from hsjax.errors import UserError
from hsjax.files import new_folder, reason, write_json, write_text
from hsjax.samplers import SAMPLERS
from hsjax.sampling import fit_name, from_arrays, to_arrays

if TYPE_CHECKING:
    from hsjax.runs import Run

CARD = "card.json"
_Arrays = dict[str, np.ndarray]


def _to_safetensors(arrays: _Arrays) -> bytes:
    from safetensors.numpy import save

    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _from_safetensors(data: bytes) -> _Arrays:
    from safetensors.numpy import load

    return load(data)


def _to_npz(arrays: _Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _from_npz(data: bytes) -> _Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path: params/encoder/blocks/0/conv1/kernel."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def _to_torch(trees: dict[str, dict]) -> dict[str, Any]:
    """PyTorch's names for the networks; what a method learns besides keeps its usual names."""
    besides = {name: {k: v for k, v in t.items() if k == "method"} for name, t in trees.items()}
    return published.state_dict(**trees) | _flat(besides)


def _from_torch(arrays: _Arrays, like: dict[str, dict], path: Path) -> _Arrays:
    shapes = (like["params"], like["batch_stats"])
    params, batch_stats = published.from_state_dict(arrays, *shapes, path)
    return arrays | _flat({"params": params, "batch_stats": batch_stats})


class _Format(NamedTuple):
    """How arrays become a file, and how those of the networks are named in it."""

    ending: str
    write: Callable[[_Arrays], bytes]
    read: Callable[[bytes], _Arrays]
    named: Callable[[dict[str, dict]], dict[str, Any]] = _flat
    usual: Callable[[_Arrays, dict[str, dict], Path], _Arrays] = lambda arrays, like, path: arrays


_SAFETENSORS = _Format("safetensors", _to_safetensors, _from_safetensors)
FORMATS = {
    "safetensors": _SAFETENSORS,
    "npz": _Format("npz", _to_npz, _from_npz),
    "torch-state-dict-names": _SAFETENSORS._replace(named=_to_torch, usual=_from_torch),
}
"""With "torch-state-dict-names" weights have the names and layouts of `hsjax.published`."""


def write(
    run: "Run",
    out: Path,
    *,
    format: str = "safetensors",
    samplers: Iterable[str] | None = None,
    half: bool = False,
    note: str = "",
) -> None:
    """Write a model to a new folder, which `hsjax.load` reads back.

    Args:
      run: of `hsjax.load`.
      out: the folder; it must not be there yet, or be empty.
      format: a name in `FORMATS`.
      samplers: whose fitted parameters are included; those of the config if None.
      half: write floats as float16, which halves the size; they are float32 again once loaded.
      note: what else its card says, such as where the model was trained.

    Raises:
      UserError: an unknown format or sampler, one that can't be fitted, or a folder that can't be
        written.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format}: choose one of {', '.join(FORMATS)}")
    if samplers is None:
        samplers = (run.config.sample.sampler, *run.config.evaluate.samplers)
    fits = {}
    for name in samplers:
        if name not in SAMPLERS:
            raise UserError(f"--samplers: {name!r} is none: choose from {', '.join(SAMPLERS)}")
        if SAMPLERS[name].learned or SAMPLERS[name].parameters:
            fits[fit_name(name)] = to_arrays(run.sampling.fit(name))
    state = jax.device_get(run.state)
    ending, encoded, _, named, _ = FORMATS[format]
    weights = named({"params": state.params, "batch_stats": state.batch_stats})
    parts = {"model": weights, "samplers": _flat(fits)}
    if half:
        parts = {name: _halved(arrays) for name, arrays in parts.items()}
    files = {f"{name}.{ending}": encoded(arrays) for name, arrays in parts.items()}
    card = cards.card(run.config, run.setup, state, run.metrics, run.data, note)
    card["format"] = format
    card["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    with new_folder(out) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        write_json(folder / CARD, card)
        write_text(folder / "README.md", cards.markdown(card, out.name))


def _halved(arrays: _Arrays) -> _Arrays:
    """In float16, except for what that can't hold, such as a large κ."""
    most = np.finfo(np.float16).max
    fits = {k for k, x in arrays.items() if x.dtype == np.float32 and abs(x).max(initial=0) <= most}
    return {name: x.astype(np.float16) if name in fits else x for name, x in arrays.items()}


def _widened(arrays: _Arrays) -> _Arrays:
    """What `_halved` has halved, in float32."""
    return {k: x.astype(np.float32) if x.dtype == np.float16 else x for k, x in arrays.items()}


class Exported(NamedTuple):
    """What a folder holds."""

    card: dict[str, Any]
    config: ConfigDict
    weights: _Arrays
    fits: dict[str, Any]  # parameters of samplers, by sampling.fit_name


def read(path: Path) -> Exported:
    """What `write` wrote to a folder.

    Raises:
      UserError: a file is missing, damaged, or not the one that the card is of.
    """
    card = read_record(path / CARD) or {}
    try:
        whole = [card["step"], card["steps_per_epoch"], *card["shape"]]
        if [type(x) for x in whole] != [int] * 5 or min(whole) < 0 or not card["steps_per_epoch"]:
            raise ValueError
        record, sums = {**card["config"]}, {**card["files"]}
        ending, _, decoded, *_ = FORMATS[card["format"]]
        card |= {name: {**card[name]} for name in ("numbers", "data")}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / CARD} is damaged: get a good copy of the folder") from error
    arrays = []
    for name in (f"model.{ending}", f"samplers.{ending}"):
        try:
            data = (path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != sums.get(name):
                raise ValueError("it is not the file that the card is of")
            arrays.append(_widened(decoded(data)))
        except Exception as error:  # damaged bytes may provoke any
            raise UserError(
                f"{path / name} can't be read ({reason(error)}): get a good copy of the folder"
            ) from error
    weights, flat = arrays
    fits = {
        name: from_arrays(SAMPLERS[name], tree)
        for name, tree in unflatten_dict(flat, sep="/").items()
        if name in SAMPLERS
    }
    return Exported(card, from_json(record, path / CARD), weights, fits)


def fill(like: Any, exported: Exported, path: Path) -> Any:
    """The exported weights as a tree like `like`, {"params": ..., "batch_stats": ...}.

    Raises:
      UserError: they lack an array, or one has another shape.
    """
    weights = FORMATS[exported.card["format"]].usual(exported.weights, like, path)
    wanted = _flat(like)
    for name, x in wanted.items():
        found = weights.get(name)
        if found is None or (found.shape, found.dtype) != (x.shape, x.dtype):
            there = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise UserError(
                f"{path}: {name} is {there}, not {x.dtype} {x.shape}: load it with the networks "
                "and the version of hsjax that it was trained with"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [weights[name] for name in wanted])
