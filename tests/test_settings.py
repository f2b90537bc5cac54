"""Settings with names are configs, with the authors' constants where they are the authors'."""

import jax
import numpy as np
import pytest

from configs import celeba, cifar, default, digits, images, mnist
from hsjax import settings
from hsjax.config import validate
from hsjax.errors import UserError
from hsjax.methods import METHODS

DATA = {"digits": digits, "mnist": mnist, "cifar": cifar, "celeba": celeba}
OTHERS = {"default": default, "images": images}


@pytest.mark.parametrize("name", settings.all_settings())
@pytest.mark.parametrize("data", [*DATA, *OTHERS])
def test_every_setting_is_a_config_of_every_data_set(data, name):
    config = (DATA | OTHERS)[data].get_config(name)
    if data == "images":
        config.data.name = "faces/"  # as the command line does
    setting = settings.find(name)
    assert config.method.name == setting.method
    for field, value in setting.fields.items():
        group, own = field.split(".")
        assert config[group][own] == value or value is None
    if config.method.to_dict().get("std_angle_gain", 0.0) is None:
        assert data in ("digits", *OTHERS)
        with pytest.raises(UserError, match=r"std_angle_gain is not set: .*MNIST \(50000\)"):
            validate(config)
        config.method.std_angle_gain = 7.0  # as the command line would
    validate(config)


@pytest.mark.parametrize(("data", "n", "gain"), [("mnist", 128, 5e4), ("cifar", 200, 5e5)])
def test_the_published_recipe_in_every_row(data, n, gain):
    """Angles' gains, radii and their targets: tests/test_losses.py."""
    config = DATA[data].get_config("published")
    train = config.train
    assert (train.epochs, train.batch_size, train.decay_epochs) == (300, 200, (280,))
    assert (train.learning_rate, train.decay_factor, train.adam_eps) == (2e-4, 0.5, 1e-8 / 0.001)
    assert (config.loss.annealing, config.loss.annealing_epochs) == ("published_drop", 100)
    assert (config.loss.relative_beta, config.loss.beta) == (True, 2500.0)
    assert (config.model.latent_dim, config.model.project) == (n, True)
    assert config.model.initialisation == "pytorch"
    assert config.data.flip == (data == "cifar")
    fields = config.method.to_dict()
    spec = METHODS[fields.pop("name")].hyper(n, **fields)
    assert [float(x) for x in spec.term_gains] == [1000.0, 300.0, gain, 500.0]
    assert float(spec.mean_target[1, -1]) == np.float32((n - 0.5) ** 0.5)

    near = DATA[data].get_config("published_near")
    assert near.method.std_radius == 0.001
    half = DATA[data].get_config("published_half")
    assert (half.loss.annealing, half.method.compression) == ("published", "half")
    twin = DATA[data].get_config("published_standard")
    assert (twin.loss.annealing, twin.method.spec) == ("none", "published")
    assert not twin.model.project
    for name in ("relative_beta", "annealing_epochs"):
        assert twin.loss[name] == config.loss[name]
    assert twin.train == train
    assert twin.model.initialisation == "pytorch"


def test_a_shorter_run_shortens_annealing_and_decay():
    config = cifar.get_config("published:30")
    assert (config.train.epochs, config.loss.annealing_epochs) == (30, 10)
    assert config.train.decay_epochs == (28,)
    config = cifar.get_config("rae:2")
    assert (config.train.epochs, config.train.decay_epochs) == (2, (2,))
    for wrong in ("published:", "published:0", "published:x", "published:-3", "published:3:4"):
        with pytest.raises(ValueError, match="write the epochs as published:30"):
            cifar.get_config(wrong)
    with pytest.raises(ValueError, match=r"\(did you mean published\?\): choose .*half"):
        cifar.get_config("publshed")


def test_settings_of_one_method_share_their_programs():
    """Their numbers are arrays."""
    names = ("compressed", "half", "spread", "sphere")
    trees = []
    for name in names:
        fields = mnist.get_config(name).method.to_dict()
        trees.append(METHODS[fields.pop("name")].hyper(128, **fields))
    assert len({jax.tree.structure(tree) for tree in trees}) == 1
