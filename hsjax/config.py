"""What a user can get wrong in a config, said in one line before anything compiles."""

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hsjax import losses, models, samplers
from hsjax.errors import UserError

# A run may be continued with these changed: no number of a finished epoch depends on them.
_FREE = (
    *("data.dir", "data.device_share", "train.epochs", "train.checkpoint_every"),
    *("train.checkpoints_kept", "train.debug_nans"),
)
_FREE_GROUPS = ("sample.", "evaluate.")
# What versions did that lacked these fields: runs of theirs may be continued by this one.
EARLIER = {
    "data.corrupt": "refuse",
    "data.crop": 0,
    "data.size": 0,
    "data.test_share": 0.1,
    "loss.compressed_angles": 0,
    "loss.mean_target": None,
    "loss.spread_target": None,
    "loss.std_angle_gain": 500_000.0,
    "loss.std_radius": 1.0,
    "model.initialisation": "lecun_normal",
    "train.adam_eps": 1e-8,
}


# --------------------------------------------------------------------------- what a field may be

_Check = Callable[[str, Any], None]  # (field, value) -> nothing, or a UserError


def _one_of(*choices: str) -> _Check:
    def check(field, value):
        if type(value) is not str or value not in choices:
            raise UserError(f"{field} is {_shown(value)}: choose one of {', '.join(choices)}")

    return check


def _some_of(*choices: str) -> _Check:
    def check(field, value):
        # A command line's a,b arrives as the one text "a,b".
        several = isinstance(value, tuple | list)
        wrong = [v for v in value if type(v) is not str or v not in choices] if several else [value]
        if wrong:
            raise UserError(
                f"{field} holds {_shown(wrong[0])}: choose from {', '.join(choices)}, "
                f"written as ('{choices[0]}', '{choices[1]}')"
            )
        _check_different(field, value)

    return check


def _switch(field: str, value: Any) -> None:
    if type(value) is not bool:
        raise UserError(f"{field} is {_shown(value)}: it must be True or False")


def _string(field: str, value: Any) -> None:
    if type(value) is not str or "\0" in value:  # no path holds that
        raise UserError(f"{field} is {_shown(value)}: it must be a string")


def _name(field: str, value: Any) -> None:
    _string(field, value)
    if not value.strip():
        raise UserError(f"{field} is {value!r}: it must not be empty")


def _whole(least: int, most: int = 1_000_000_000) -> _Check:
    def check(field, value):
        if type(value) is not int or not least <= value <= most:
            raise UserError(
                f"{field} is {_shown(value)}: it must be a whole number from {least} to {most}"
            )

    return check


def _wholes(least: int, most: int, *, fewest: int, up_to: int, different: bool = True) -> _Check:
    def check(field, value):
        several = isinstance(value, tuple | list) and fewest <= len(value) <= up_to
        if not several or not all(type(v) is int and least <= v <= most for v in value):
            raise UserError(
                f"{field} is {_shown(value)}: it must hold {fewest} to {up_to} whole numbers "
                f"from {least} to {most}, written as (1, 2)"
            )
        if different:
            _check_different(field, value)

    return check


def _number(least: float, most: float = 1e30, *, may_be_unset: bool = False) -> _Check:
    def check(field, value):
        if value is None and may_be_unset:
            return
        if type(value) is bool or not isinstance(value, int | float) or not least <= value <= most:
            raise UserError(
                f"{field} is {_shown(value)}: it must be a number from {least:g} to {most:g}"
            )

    return check


def _check_different(field: str, value) -> None:
    if len(set(value)) < len(value):
        raise UserError(f"{field} is {_shown(value)}: leave out what it holds twice")


def _shown(value: Any) -> str:
    """A value of whatever kind, short enough for a line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of 5000 digits is refused a repr
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}..."


_SEED = 0, 2**32 - 1  # JAX takes a larger one modulo 2³²
_POSITIVE = _number(1e-30)  # in float32, 1e-300 would be 0
# Every field of configs/default.py, in its order.
_FIELDS: dict[str, _Check] = {
    "seed": _whole(*_SEED),
    "data.name": _name,
    "data.dir": _string,
    "data.flip": _switch,
    "data.size": _whole(0, 100_000),
    "data.crop": _whole(0, 100_000),
    "data.corrupt": _one_of("refuse", "skip"),
    "data.test_share": _number(0.001, 0.999),
    "data.device_share": _number(0),
    "model.latent_dim": _whole(2, 1_000_000),
    "model.stages": _wholes(1, 100_000, fewest=1, up_to=10, different=False),
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.initialisation": _one_of(*models.INITIALISATIONS),
    "model.project": _switch,
    "loss.kind": _one_of("standard", "cartesian", "spherical"),
    "loss.beta": _number(0),
    "loss.annealing": _one_of(*losses.ANNEALINGS),
    "loss.annealing_epochs": _whole(1),
    "loss.relative_beta": _switch,
    "loss.spec": _one_of("paper", "published"),
    "loss.compression": _one_of(*losses.COMPRESSIONS),
    "loss.mean_target": _number(-1, 1, may_be_unset=True),
    "loss.spread_target": _number(0, 1, may_be_unset=True),
    "loss.compressed_angles": _whole(0),
    "loss.angle_gain": _number(0),
    "loss.radius_gain": _number(0),
    "loss.eps": _POSITIVE,
    "loss.variance_eps": _POSITIVE,
    "loss.std_radius": _number(0),
    "loss.std_angle_gain": _number(0),
    "train.epochs": _whole(1),
    "train.batch_size": _whole(2),
    "train.learning_rate": _POSITIVE,
    "train.adam_eps": _POSITIVE,
    "train.decay_epochs": _wholes(1, 1_000_000_000, fewest=0, up_to=1000),
    "train.decay_factor": _POSITIVE,
    "train.gradient_clip": _number(0),
    "train.checkpoint_every": _whole(1),
    "train.checkpoints_kept": _whole(1),
    "train.loop": _one_of("auto", "scan", "steps"),
    "train.debug_nans": _switch,
    "sample.sampler": _one_of(*samplers.SAMPLERS),
    "sample.fit_split": _one_of("train", "test"),
    "sample.count": _whole(2),
    "evaluate.latent_scale": _POSITIVE,
    "evaluate.batch_norm": _one_of("running", "batch"),
    "evaluate.samplers": _some_of(*samplers.SAMPLERS),
    "evaluate.metrics": _some_of("frechet", "kid", "prdc", "knn", "probe", "latents", "tsne"),
    "evaluate.features": _one_of("classifier", "random", "inception", "none"),
    "evaluate.feature_seeds": _wholes(*_SEED, fewest=1, up_to=1000),
    "evaluate.feature_steps": _whole(1),
    "evaluate.inception_weights": _string,
    "evaluate.neighbours": _whole(1),
}


def validate(config: ConfigDict) -> None:
    """Check that a config has the fields of configs/default.py, each of its type and range.

    Raises:
      UserError: names the field, its value and what it may be.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"the config is of type {type(config).__name__}: make it an ml_collections.ConfigDict, "
            "as configs/default.py does"
        )
    values = _flat(config.to_dict())
    for field in values:
        if field not in _FIELDS:
            raise UserError(f"no such config field: {field}")
    for field, check in _FIELDS.items():
        if field not in values:
            raise UserError(f"{field} is missing: start from the config of configs/default.py")
        check(field, values[field])
    angles = config.model.latent_dim - 1
    if config.loss.compressed_angles > angles:
        raise UserError(
            f"loss.compressed_angles is {config.loss.compressed_angles}: "
            f"model.latent_dim={angles + 1} has {angles} angles"
        )
    weights = config.evaluate.inception_weights
    if config.evaluate.features == "inception" and not os.path.isfile(os.path.expanduser(weights)):
        from hsjax.metrics.inception import URL  # which imports this module

        raise UserError(
            f"evaluate.inception_weights is {weights!r}, which is no file: "
            f"download {URL} and give its path"
        )


def check_workdir(config: ConfigDict, path: Path) -> None:
    """Find out whether the run that a workdir holds, if any, is of this config.

    Its data may have another name where data.json tells whether it is the same.

    Raises:
      UserError: it is of another one (the fields that differ are named), or can't be read.
    """
    mine = _flat(_as_json(config))
    own = _recorded(path / "config.json", mine)
    named = read_record(path / "data.json") is not None
    if differing := [f for f in _differing(own, mine) if not (named and f == "data.name")]:
        told = (f"{f} is {_shown(mine.get(f))}, there {_shown(own.get(f))}" for f in differing)
        raise UserError(
            f"{path} holds a run of another config ({'; '.join(told)}): choose another --workdir"
        )


def of_evaluation(
    config: ConfigDict, path: Path, given: Collection[str] | None = None
) -> ConfigDict:
    """A workdir's own config, with those fields of `config` that an evaluation may change.

    Args:
      config: a whole one.
      path: of the workdir; one without a config.json gets `config` as it is.
      given: the fields or groups of `config` that somebody chose; all if None.

    Raises:
      UserError: another chosen field differs, or config.json can't be used.
    """
    validate(config)
    mine = _flat(_as_json(config))
    own = _recorded(path / "config.json", mine)
    if unknown := sorted(own.keys() - mine.keys()):
        raise UserError(
            f"{path / 'config.json'} has {unknown[0]}, which this version of hsjax lacks: "
            "use the one that wrote it"
        )
    chosen = [f for f in mine if given is None or f in given or f.partition(".")[0] in given]
    differing = [f for f in _differing(own, mine) if f in chosen and f != "data.name"]
    if differing:
        told = (f"{f}={_shown(own.get(f))}" for f in differing)
        raise UserError(
            f"{path} was trained with {', '.join(told)}, which --mode=evaluate can't change: "
            f"leave out {', '.join(differing)}"
        )
    fields = mine | own
    fields |= {f: mine[f] for f in chosen if _is_free(f) or f == "data.name"}
    found = config.copy_and_resolve_references()
    with found.ignore_type():
        found.update_from_flattened_dict(
            {f: tuple(value) if isinstance(value, list) else value for f, value in fields.items()}
        )
    try:
        validate(found)
    except UserError as error:
        raise UserError(f"{path / 'config.json'}: {error}") from error
    return found


def _as_json(config: ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def read_record(file: Path) -> dict | None:
    """The JSON object in a file of a workdir; None if there is none, or a link to anything else.

    Raises:
      UserError: the file holds something else.
    """
    if not file.exists():
        return None
    try:
        if not file.is_file():  # a pipe might never end
            raise ValueError
        found = {**json.loads(file.read_text())}
        _flat(found)  # nested too deeply, it is damaged
        return found
    except (OSError, RecursionError, TypeError, ValueError) as error:
        if file.is_symlink():
            return None
        raise UserError(f"{file} is damaged: remove it or choose another --workdir") from error


def _recorded(file: Path, mine: dict) -> dict:
    """The fields of a workdir's config.json, with what versions that lacked some did; or `mine`."""
    record = read_record(file)
    return mine if record is None else EARLIER | _flat(record)


def _flat(tree: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_free(field: str) -> bool:
    return field in _FREE or field.startswith(_FREE_GROUPS)


def _differing(own: dict, mine: dict) -> list[str]:
    """The fields that make two runs."""
    return [
        field
        for field in sorted(own.keys() | mine.keys())
        if not _is_free(field) and own.get(field) != mine.get(field)
    ]
