"""MNIST, n = 128, with any method: --config=mnist:METHOD.

Command: hsjax train --config=mnist:rae
Run time: about 90 seconds an epoch on two CPU cores; it is meant for an accelerator.
A prepared tensorflow-datasets folder elsewhere: --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from hsjax import settings
from hsjax.configs import default

# Fields of each method on these data; the rest is in configs/default.py and the method's file.
SETTINGS = {
    "standard": {"loss.beta": 0.3},  # about the MSE of the compressed twin after three epochs
    "standard_projected": {"loss.beta": 0.1},
    "cartesian": {"loss.beta": 0.3},
    "spherical": {
        "model.project": True,
        "method.angle_gain": 10.0,  # the paper leaves it open
        "loss.annealing": "sqrt",
        "sample.sampler": "projected_gaussian",
    },
    "autoencoder": {"sample.sampler": "gmm"},
    "rae": {"loss.beta": 0.0128, "sample.sampler": "gmm"},  # the authors', at n = 16
    "svae": {"loss.beta": 0.3},
    "swae": {"loss.beta": 61.0},  # the authors' constants
    "wae": {"loss.beta": 200.0},
    "spherical_swae": {"loss.beta": 7840.0},
    "mixture": {"loss.beta": 0.3},
    "vampprior": {"loss.beta": 0.3},
    "vqvae": {"loss.beta": 1.5, "sample.sampler": "codes"},  # the authors' constant
}


def get_config(name: str = "standard") -> ConfigDict:
    config = default.fields(name)
    config.data.name = "mnist"
    config.model.latent_dim = 128
    return settings.apply(config, name, SETTINGS)
