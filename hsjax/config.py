"""What a user can get wrong in a config, said in one line before anything compiles."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from hsjax import losses, samplers

KINDS = ("standard", "cartesian", "spherical")
# A run may be continued with these changed: no number of a finished epoch depends on them.
_FREE = (
    *("data.dir", "data.device_share", "train.epochs", "train.checkpoint_every"),
    *("train.checkpoints_kept", "train.debug_nans"),
)
_FREE_GROUPS = ("sample.", "evaluate.")
METRICS = ("frechet", "kid", "prdc", "knn", "probe", "latents", "tsne")


class UserError(ValueError):
    """A mistake the user can mend: its message is one line that says what to do."""


def validate(config: ConfigDict) -> None:
    """Check every field that has a range or a list of choices.

    Raises:
      UserError: names the field, its value and what it may be.
    """
    data, loss, model, train = config.data, config.loss, config.model, config.train
    evaluate = config.evaluate
    for field, value, choices in (
        ("data.corrupt", data.corrupt, ("refuse", "skip")),
        ("model.dtype", model.dtype, ("float32", "bfloat16")),
        ("loss.kind", loss.kind, KINDS),
        ("loss.annealing", loss.annealing, losses.ANNEALINGS),
        ("loss.spec", loss.spec, ("paper", "published")),
        ("loss.compression", loss.compression, losses.COMPRESSIONS),
        ("train.loop", train.loop, ("auto", "scan", "steps")),
        ("sample.sampler", config.sample.sampler, tuple(samplers.SAMPLERS)),
        ("sample.fit_split", config.sample.fit_split, ("train", "test")),
        ("evaluate.features", evaluate.features, ("classifier", "inception", "none")),
    ):
        if value not in choices:
            raise UserError(f"{field} is {value!r}: choose one of {', '.join(choices)}")
    for field, value, choices in (
        ("evaluate.samplers", evaluate.samplers, tuple(samplers.SAMPLERS)),
        ("evaluate.metrics", evaluate.metrics, METRICS),
    ):
        # A command line's a,b arrives as the one text "a,b".
        if isinstance(value, str) or (unknown := [name for name in value if name not in choices]):
            shown = value if isinstance(value, str) else unknown[0]
            raise UserError(
                f"{field} holds {shown!r}: choose from {', '.join(choices)}, "
                f"written as ('{choices[0]}', '{choices[1]}')"
            )
    for field, value, least in (
        ("seed", config.seed, 0),
        ("data.size", data.size, 0),
        ("data.crop", data.crop, 0),
        ("data.device_share", data.device_share, 0),
        ("model.latent_dim", model.latent_dim, 2),
        ("train.epochs", train.epochs, 1),
        ("train.batch_size", train.batch_size, 2),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.checkpoints_kept", train.checkpoints_kept, 1),
        ("loss.annealing_epochs", loss.annealing_epochs, 1),
        ("evaluate.neighbours", evaluate.neighbours, 1),
        ("evaluate.feature_steps", evaluate.feature_steps, 1),
        ("sample.count", config.sample.count, 2),
        ("loss.beta", loss.beta, 0),
        ("loss.angle_gain", loss.angle_gain, 0),
        ("loss.radius_gain", loss.radius_gain, 0),
        ("train.gradient_clip", train.gradient_clip, 0),
    ):
        if not least <= value < float("inf"):
            raise UserError(f"{field} is {value}: it must be at least {least}")
    for field, value in (
        ("train.learning_rate", train.learning_rate),
        ("train.decay_factor", train.decay_factor),
        ("loss.eps", loss.eps),
        ("loss.variance_eps", loss.variance_eps),
        ("evaluate.latent_scale", evaluate.latent_scale),
    ):
        if not 0 < value < float("inf"):
            raise UserError(f"{field} is {value}: it must be positive")
    for field, value in (
        ("model.stages", model.stages),
        ("train.decay_epochs", train.decay_epochs),
    ):
        if not all(type(v) is int and v > 0 for v in value):
            raise UserError(f"{field} is {tuple(value)}: it must hold positive whole numbers")
    seeds = evaluate.feature_seeds
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(
            f"evaluate.feature_seeds is {tuple(seeds)}: it must hold whole numbers from 0"
        )
    if evaluate.features == "inception" and not Path(evaluate.inception_weights).is_file():
        raise UserError(
            f"evaluate.inception_weights is {evaluate.inception_weights!r}, which is no file: "
            "give the path of pt_inception-2015-12-05-6726825d.pth"
        )
    if not model.stages:
        raise UserError("model.stages is empty: give the channels of at least one stage")


def check_workdir(config: ConfigDict, path: Path) -> None:
    """Find out whether the run that a workdir holds, if any, is of this config.

    Raises:
      UserError: it is of another one (the fields that differ are named), or can't be read.
    """
    file = path / "config.json"
    try:
        existing = json.loads(file.read_text()) if file.exists() else config.to_dict()
        if not isinstance(existing, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{file} is damaged: remove it or choose another --workdir") from error
    if differing := _differences(existing, config.to_dict()):
        raise UserError(
            f"{path} holds a run of another config ({'; '.join(differing)}): "
            "choose another --workdir, or remove that folder"
        )


def _flat(tree: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _differences(old: dict, new: dict) -> list[str]:
    old, new = _flat(old), _flat(new)
    return [
        f"{field} is {new.get(field)!r}, there {old.get(field)!r}"
        for field in sorted(old.keys() | new.keys())
        if field not in _FREE
        and not field.startswith(_FREE_GROUPS)
        and old.get(field) != new.get(field)
    ]
