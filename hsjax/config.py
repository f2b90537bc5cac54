"""Checks of a config, which report a mistake in one line before anything compiles."""

import functools
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hsjax import evaluation, logs, losses, models, samplers, training
from hsjax.errors import UserError
from hsjax.methods import METHODS, Bounds

# A run may be continued with these changed: no number of a finished epoch depends on them.
_FREE = (
    *("data.dir", "data.device_share", "train.epochs", "train.checkpoint_every"),
    *("train.checkpoints_kept", "train.keep_best", "train.debug_nans", "log.writer"),
)
_FREE_GROUPS = ("sample.", "evaluate.")
_STRETCHED = "train.epochs", "cosine"  # a longer cosine differs from the first step on

_Rule = Callable[[Any], str]  # a value -> what it must be, "" if it is valid


def _one_of(choices: Iterable[str]) -> _Rule:
    def wanted(value):
        fits = type(value) is str and value in choices
        return "" if fits else f"choose one of {', '.join(choices)}"

    return wanted


def _some_of(choices: Collection[str]) -> _Rule:
    def wanted(value):
        several = isinstance(value, tuple | list) and all(type(v) is str for v in value)
        if several and len(set(value)) == len(value) and all(v in choices for v in value):
            return ""
        first, second = list(choices)[:2]
        return f"choose from {', '.join(choices)}, each once, written as ('{first}', '{second}')"

    return wanted


def _switch(value: Any) -> str:
    return "" if type(value) is bool else "it must be True or False"


def _string(value: Any) -> str:
    return "" if type(value) is str and "\0" not in value else "it must be a string"


def _name(value: Any) -> str:
    if value is None:
        return "say which images, such as --config.data.name=FOLDER/"
    if type(value) is str and not value.strip():
        return "it must not be empty"
    return _string(value)


def _whole(least: int, most: int = 1_000_000_000) -> _Rule:
    def wanted(value):
        fits = type(value) is int and least <= value <= most
        return "" if fits else f"it must be a whole number from {least} to {most}"

    return wanted


def _wholes(least: int, most: int, *, fewest: int, up_to: int, different: bool = True) -> _Rule:
    def wanted(value):
        fits = isinstance(value, tuple | list) and fewest <= len(value) <= up_to
        fits = fits and all(type(v) is int and least <= v <= most for v in value)
        if fits and not (different and len(set(value)) < len(value)):
            return ""
        which = "different whole numbers" if different else "whole numbers"
        return f"it must hold {fewest} to {up_to} {which} from {least} to {most}, such as (1, 2)"

    return wanted


def _number(least: float, most: float = 1e30) -> _Rule:
    def wanted(value):
        fits = type(value) is not bool and isinstance(value, int | float) and least <= value <= most
        return "" if fits else f"it must be a number from {least:g} to {most:g}"

    return wanted


def _annotated(annotation: Any) -> _Rule:
    """The rule that the annotation of a method's field stands for."""
    bounds = Bounds(-1e30)
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)
    if get_origin(annotation) is Literal:
        return _one_of(get_args(annotation))
    if NoneType in get_args(annotation):
        rule = _annotated(Annotated[get_args(annotation)[0], bounds])
        return lambda value: "" if value is None else rule(value)
    if annotation is int:
        return _whole(int(bounds.least), int(min(bounds.most, 1e9)))
    return {bool: _switch, str: _string, float: _number(*bounds)}[annotation]


def _shown(value: Any) -> str:
    """A value of whatever kind, short enough for a line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of 5000 digits is refused a repr
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}..."


_SEED = 0, 2**32 - 1  # JAX takes a larger one modulo 2³²
_POSITIVE = _number(1e-30)  # in float32, 1e-300 would be 0
# Every field of configs/default.py except the method's, in its order: default and rule. A stored
# config that is too old to have a field gets the default.
_FIELDS: dict[str, tuple[Any, _Rule]] = {
    "seed": (0, _whole(*_SEED)),
    "data.name": ("digits", _name),
    "data.dir": ("", _string),
    "data.flip": (False, _switch),
    "data.size": (0, _whole(0, 100_000)),
    "data.crop": (0, _whole(0, 100_000)),
    "data.corrupt": ("refuse", _one_of(("refuse", "skip"))),
    "data.test_share": (0.1, _number(0.001, 0.999)),
    "data.leave_out": ((), _wholes(0, 2**31 - 1, fewest=0, up_to=1000)),
    "data.validation_share": (0.0, _number(0, 0.999)),
    "data.device_share": (0.25, _number(0)),
    "model.latent_dim": (128, _whole(2, 1_000_000)),
    "model.stages": ((16, 32, 64), _wholes(1, 100_000, fewest=1, up_to=10, different=False)),
    "model.dtype": ("float32", _one_of(("float32", "bfloat16"))),
    "model.initialisation": ("lecun_normal", _one_of(models.INITIALISATIONS)),
    "model.project": (False, _switch),
    "loss.beta": (1.0, _number(0)),
    "loss.annealing": ("none", _one_of(losses.ANNEALINGS)),
    "loss.annealing_epochs": (100, _whole(1)),
    "loss.relative_beta": (False, _switch),
    "train.epochs": (300, _whole(1)),
    "train.batch_size": (200, _whole(2)),
    "train.learning_rate": (2e-4, _POSITIVE),
    "train.adam_eps": (1e-8, _POSITIVE),
    "train.schedule": ("step", _one_of(training.SCHEDULES)),
    "train.warmup_epochs": (0.0, _number(0, 1e9)),
    "train.decay_epochs": ((280,), _wholes(1, 1_000_000_000, fewest=0, up_to=1000)),
    "train.decay_factor": (0.5, _POSITIVE),
    "train.gradient_clip": (0.0, _number(0)),
    "train.weight_decay": (0.0, _number(0)),
    "train.ema": (0.0, _number(0, 0.999999)),
    "train.checkpoint_every": (10, _whole(1)),
    "train.checkpoints_kept": (3, _whole(1)),
    "train.keep_best": ("none", _one_of(("none", "mse", "loss"))),
    "train.loop": ("auto", _one_of(("auto", "scan", "steps"))),
    "train.debug_nans": (False, _switch),
    "log.writer": ("tensorboard", _one_of(logs.WRITERS)),
    "sample.sampler": ("own", _one_of(samplers.SAMPLERS)),
    "sample.fit_split": ("train", _one_of(("train", "test"))),
    "sample.count": (10_000, _whole(2)),
    "sample.steps": (4, _whole(1, 1000)),
    "sample.fit_steps": (4000, _whole(1)),
    "evaluate.split": ("test", _one_of(("test", "validation"))),
    "evaluate.checkpoint": ("newest", _one_of(("newest", "best"))),
    "evaluate.latent_scale": (1.0, _POSITIVE),
    "evaluate.samplers": (
        (
            *("own", "prior", "uniform_sphere", "vmf", "gaussian", "gmm"),
            *("projected_gaussian", "projected_gmm", "angles"),
        ),
        _some_of(samplers.SAMPLERS),
    ),
    "evaluate.batch_norm": ("running", _one_of(("running", "batch"))),
    "evaluate.metrics": (
        ("frechet", "kid", "prdc", "memorisation", "knn", "probe", "latents", "tsne"),
        _some_of(evaluation.METRICS),
    ),
    "evaluate.ood_data": ("", _string),
    "evaluate.features": (
        "classifier",
        _one_of(("classifier", "random", "inception", "none")),
    ),
    "evaluate.feature_seeds": ((0,), _wholes(*_SEED, fewest=1, up_to=1000)),
    "evaluate.feature_steps": (500, _whole(1)),
    "evaluate.inception_weights": ("", _string),
    "evaluate.neighbours": (5, _whole(1)),
}


def method_fields(name: str) -> ConfigDict:
    """A method's name and fields with their defaults, as under `config.method`.

    Raises:
      ValueError: no such method.
    """
    if name not in METHODS:
        raise ValueError(f"{name!r} is no method: choose one of {', '.join(METHODS)}")
    fields = {field: p.default for field, p in _schema(name).items()}
    unset = {field: placeholder(float) for field, value in fields.items() if value is None}
    return ConfigDict({"name": name, **fields, **unset})


def _schema(name: str) -> dict[str, inspect.Parameter]:
    """The fields of a method, from the signature of its `hyper`; none if it is unknown."""
    if name not in METHODS:
        return {}
    parameters = inspect.signature(METHODS[name].hyper, eval_str=True).parameters
    return {field: p for field, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


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
    values = flattened(config.to_dict())
    name = str(values.get("method.name"))
    schema = _schema(name)
    rules = {field: rule for field, (_, rule) in _FIELDS.items()}
    rules["method.name"] = _one_of(METHODS)
    rules |= {f"method.{field}": _annotated(p.annotation) for field, p in schema.items()}
    for field in sorted(values.keys() - rules.keys()):
        if not field.startswith("method."):
            raise UserError(f"no such config field: {field}")
        if name in METHODS:
            raise UserError(
                f"{field} is no field of {name}, which has: {', '.join(schema) or 'none'}; another "
                "method is chosen with --config=configs/DATA.py:METHOD"
            )
    for field, rule in rules.items():
        if field not in values:
            raise UserError(f"{field} is missing: start from the config of configs/default.py")
        if wanted := rule(values[field]):
            raise UserError(f"{field} is {_shown(values[field])}: {wanted}")
    fields = {field: values[f"method.{field}"] for field in schema}
    try:  # what the method itself refuses
        jax.eval_shape(lambda: METHODS[name].hyper(config.model.latent_dim, **fields))
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    if config.train.keep_best != "none" and not config.data.validation_share:
        raise UserError(
            "train.keep_best needs images to choose on: set data.validation_share, such as 0.1"
        )


def check_workdir(config: ConfigDict, path: Path) -> None:
    """Check that the run in a workdir, if there is one, has this config.

    Its data may have another name if there is a data.json to tell whether the data are the same.

    Raises:
      UserError: it has another config (the fields that differ are named), or can't be read.
    """
    mine = flattened(_as_json(config))
    own = _recorded(path / "config.json", mine)
    named = read_record(path / "data.json") is not None
    if differing := [f for f in _differing(own, mine) if not (named and f == "data.name")]:
        told = (f"{f} is {_shown(mine.get(f))}, there {_shown(own.get(f))}" for f in differing)
        raise UserError(
            f"{path} holds a run of another config ({'; '.join(told)}): choose another --workdir"
        )


_MOVED = ("data.name", "data.dir", "data.device_share")  # where the data is found


def of_evaluation(path: Path, fields: Mapping[str, Any]) -> ConfigDict:
    """A workdir's own config, with new values of fields that an evaluation may change.

    Args:
      path: of the workdir.
      fields: of `sample` and `evaluate`, and where the data is found, by dotted name.

    Raises:
      UserError: another field, or config.json is missing or can't be used.
    """
    own = _recorded(path / "config.json", {})
    if not own:
        raise UserError(f"{path} holds no trained run: config.json is missing")
    if unknown := [f for f in sorted(fields) if f not in own]:
        raise UserError(f"no such config field: {unknown[0]}")
    chosen = json.loads(json.dumps(dict(fields)))
    for field, value in chosen.items():
        if not field.startswith(_FREE_GROUPS) and field not in _MOVED and value != own[field]:
            raise UserError(
                f"{path} was trained with {field}={_shown(own[field])}, which stays: an evaluation "
                f"takes the fields of sample and evaluate, data.name, data.dir and "
                f"data.device_share alone, so leave out {field}"
            )
    _stored(own, path / "config.json")
    found = _nested(own | chosen)
    validate(found)
    return found


def from_json(record: dict, file: Path) -> ConfigDict:
    """The config that a file holds as JSON, with the defaults of fields that it lacks.

    Raises:
      UserError: it is no config.
    """
    return _stored(_with_defaults(flattened(record)), file)


def _stored(fields: dict, file: Path) -> ConfigDict:
    found = _nested(fields)
    try:
        validate(found)
    except UserError as error:
        raise UserError(f"{file}: {error} (or use the version of hsjax that wrote it)") from error
    return found


def _nested(fields: Mapping[str, Any]) -> ConfigDict:
    tree: dict[str, Any] = {}
    for field, value in fields.items():
        *groups, name = field.split(".")
        holder = functools.reduce(lambda part, group: part.setdefault(group, {}), groups, tree)
        holder[name] = tuple(value) if isinstance(value, list) else value
    return ConfigDict(tree)


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
        flattened(found)  # nested too deeply, it is damaged
        return found
    except (OSError, RecursionError, TypeError, ValueError) as error:
        if file.is_symlink():
            return None
        raise UserError(
            f"{file} is damaged: bring a good copy back, or choose another --workdir"
        ) from error


def _recorded(file: Path, mine: dict) -> dict:
    """The fields of a workdir's config.json, with the defaults of those it lacks; or `mine`."""
    record = read_record(file)
    return mine if record is None else _with_defaults(flattened(record))


def _with_defaults(own: dict) -> dict:
    """The flat fields of a config, with defaults for those that an older version did not have."""
    if "loss.kind" in own:  # of a version whose three methods were kinds of loss
        own["method.name"] = own.pop("loss.kind")
        for field in [f for f in own if f.startswith("loss.") and f not in _FIELDS]:
            value, name = own.pop(field), field.removeprefix("loss.")
            if name in _schema(own["method.name"]):
                own[f"method.{name}"] = value
    defaults = {field: default for field, (default, _) in _FIELDS.items()}
    schema = _schema(str(own.get("method.name")))
    defaults |= {f"method.{field}": p.default for field, p in schema.items()}
    return json.loads(json.dumps(defaults)) | own


def flattened(tree: dict, prefix: str = "") -> dict:
    """{"group.field": value} of nested fields."""
    flat: dict = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_free(field: str) -> bool:
    return field in _FREE or field.startswith(_FREE_GROUPS)


def _differing(own: dict, mine: dict) -> list[str]:
    """The fields whose values make it a different run."""
    return [
        field
        for field in sorted(own.keys() | mine.keys())
        if own.get(field) != mine.get(field)
        and not (_is_free(field) and (field, mine.get("train.schedule")) != _STRETCHED)
    ]
