"""CIFAR10, n = 200, with any method: --config=cifar:METHOD.

Command: hsjax train --config=cifar:rae
Run time: about 80 seconds an epoch on two CPU cores; it is meant for an accelerator.
A prepared tensorflow-datasets folder elsewhere: --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from hsjax import settings
from hsjax.configs import default, mnist

# Fields of each method on these data: as on MNIST, except for these.
SETTINGS = mnist.SETTINGS | {
    "standard_projected": {"loss.beta": 0.3},
    # The authors' constants; wae's are for CelebA, rae's for n = 128.
    "rae": {"loss.beta": 0.048, "method.decoder_weight": 0.064, "sample.sampler": "gmm"},
    "swae": {"loss.beta": 154.0},
    "wae": {"loss.beta": 500.0},
    "spherical_swae": {"loss.beta": 30_720.0},
    "sphere_encoder": {"method.angle": 80.0},
    "vqvae": {"loss.beta": 3.8, "sample.sampler": "codes"},
}


def get_config(name: str = "standard") -> ConfigDict:
    config = default.fields(name)
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.latent_dim = 200
    config.evaluate.feature_steps = 2000
    return settings.apply(config, name, SETTINGS)
