"""Named settings of methods, such as the paper's compression.

A config takes a setting wherever it takes a method. A number of epochs after another colon makes a
shorter run: --config=configs/mnist.py:published:30
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hsjax.errors import UserError
from hsjax.methods import METHODS


class Setting(NamedTuple):
    """A method, the fields that differ from its defaults, and the field that is its strength."""

    method: str
    fields: Mapping[str, Any] = {}
    strength: str = "loss.beta"


_COMPRESSED = {"loss.beta": 1.0, "loss.annealing": "sqrt", "model.project": True}
# The authors' recipe. Adam's ε is 1e-8 there, for a loss multiplied by 0.001.
_PUBLISHED = {
    "method.spec": "published",
    "loss.relative_beta": True,
    "model.initialisation": "pytorch",
    "train.adam_eps": 1e-5,
}
_PUBLISHED_ANGLES = _PUBLISHED | {
    "loss.annealing": "published_drop",
    "loss.beta": 2500.0,  # recorded for CIFAR10, n = 128; the paper gives none
    "method.std_angle_gain": None,  # that of the data, below
    "model.project": True,
    "sample.sampler": "projected_gaussian",
}
SETTINGS = {
    # The radius terms alone: a sphere without any compression.
    "sphere": Setting("spherical", _COMPRESSED | {"method.angle_gain": 0.0}),
    # The paper's: mean cosines to 1, spreads to the prior's.
    "compressed": Setting("spherical", _COMPRESSED, "method.angle_gain"),
    "half": Setting("spherical", _COMPRESSED | {"method.compression": "half"}, "method.angle_gain"),
    # Mean and spread of all cosines to 0.
    "spread": Setting(
        "spherical",
        _COMPRESSED | {"method.mean_target": 0.0, "method.spread_target": 0.0},
        "method.angle_gain",
    ),
    # What the authors ran, and its standard twin.
    "published": Setting("spherical", _PUBLISHED_ANGLES),
    "published_half": Setting(
        "spherical",
        _PUBLISHED_ANGLES | {"method.compression": "half", "loss.annealing": "published"},
    ),
    # As they ran it later: a posterior that is almost a point.
    "published_near": Setting("spherical", _PUBLISHED_ANGLES | {"method.std_radius": 0.001}),
    # An axis for each of ten classes, for anomaly detection (arXiv 2601.18823).
    "published_classes": Setting(
        "spherical", _PUBLISHED_ANGLES | {"method.std_radius": 0.001, "method.classes": 10}
    ),
    # The twin's β is not known.
    "published_standard": Setting("standard", _PUBLISHED | {"loss.beta": 1.0}),
    # Variants of other methods.
    "learned_variance": Setting(
        "standard", {"method.decoder_variance": "learned", "loss.beta": 1.0}
    ),
    "power_spherical": Setting("svae", {"method.law": "power_spherical"}),
    "wae_rbf": Setting("wae", {"method.kernel": "rbf"}),
    # A mean cosine of 0.7 to one direction at n = 128: the paper's island without any angle.
    "island": Setting(
        "spherical_swae", {"method.target": "von_mises_fisher", "method.kappa": 175.0}
    ),
}


# The authors' gain of σ's angles, by data.name.
STD_ANGLE_GAINS = {
    "mnist": 50_000.0,
    "fashion_mnist": 225_000.0,
    **{name: 500_000.0 for name in ("cifar10", "svhn_cropped", "celeb_a")},
}


def all_settings() -> dict[str, Setting]:
    """Every method, with β as its strength, and the named settings."""
    return {name: Setting(name) for name in METHODS} | SETTINGS


def find(name: str) -> Setting:
    """The setting, or the method, of "NAME" or "NAME:EPOCHS".

    Raises:
      UserError: no such setting or method.
    """
    name = name.partition(":")[0]
    if name not in all_settings():
        usual = {"vae": "standard", "ae": "autoencoder"}
        alike = [usual[name]] if name in usual else get_close_matches(name, all_settings(), 1)
        meant = f" (did you mean {alike[0]}?)" if alike else ""
        known = ", ".join(all_settings())
        raise UserError(f"{name!r} is no method{meant}: choose one of {known}")
    return all_settings()[name]


def apply(config: ConfigDict, name: str, of_data: Mapping[str, Any]) -> ConfigDict:
    """Give a config the fields of a setting.

    Annealing, if any, lasts a third of the epochs, as in the paper, unless the data say otherwise.

    Args:
      config: made for the setting's method, with its data and length.
      name: "NAME" or "NAME:EPOCHS", which shortens annealing and decay of the learning rate, too.
      of_data: the fields that each method has on the config's data, by method.

    Returns:
      The config.

    Raises:
      UserError: no such setting, or EPOCHS is no number.
    """
    setting = find(name)
    name, colon, epochs = name.partition(":")
    fields = {**of_data.get(setting.method, {}), **setting.fields}
    if fields.get("loss.annealing", "none") != "none":
        fields = {"loss.annealing_epochs": max(1, round(config.train.epochs / 3)), **fields}
    if fields.get("method.std_angle_gain", 0.0) is None:
        gain = STD_ANGLE_GAINS.get(config.data.name)
        fields["method.std_angle_gain"] = placeholder(float) if gain is None else gain
    config.update_from_flattened_dict(fields)
    if colon:
        if not epochs.isdecimal() or not int(epochs):
            raise UserError(f"{name}:{epochs}: write the epochs as {name}:30")
        shorten(config, int(epochs))
    return config


def shorten(config: ConfigDict, epochs: int) -> None:
    """Set a run's epochs; annealing, warm-up and decay of the learning rate scale with them."""
    share = epochs / config.train.epochs
    config.loss.annealing_epochs = max(1, round(share * config.loss.annealing_epochs))
    config.train.decay_epochs = tuple(max(1, round(share * e)) for e in config.train.decay_epochs)
    config.train.warmup_epochs *= share
    config.train.epochs = epochs
