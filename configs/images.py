"""Your own images, with any method: --config=images:METHOD --config.data.name=FOLDER/

Command: hsjax train --config=images:rae --config.data.name=faces/
The slash at the end says that it is a folder; images.npz works as well. See docs/training.md.
Run time: 100 epochs, n = 128. Two CPU cores take about six seconds an epoch of 1,000 images.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hsjax import settings
from hsjax.configs import celeba, default

# Fields of each method on these data: as on CelebA, except constants that depend on n.
SETTINGS = celeba.SETTINGS | {
    "swae": {"loss.beta": 960.0},
    "vqvae": {"loss.beta": 24.0, "sample.sampler": "codes"},
}


def get_config(name: str = "standard") -> ConfigDict:
    config = default.fields(name)
    config.data.name = placeholder(str)
    config.data.size = 64
    config.train.batch_size = 50  # also for small sets
    config.train.epochs = 100
    config.train.decay_epochs = (90,)
    return settings.apply(config, name, SETTINGS)
