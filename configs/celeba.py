"""CelebA at 64x64, n = 200, with any method: --config=celeba:METHOD.

Command: hsjax train --config=celeba:rae
Run time: not measured on CelebA; it is meant for an accelerator. See celeba_standard.py for the
  data. For your own images: --config.data.name=FOLDER/ with FOLDER/train and FOLDER/test.
"""

from ml_collections import ConfigDict

from hsjax import settings
from hsjax.configs import cifar, default

# Fields of each method on these data: as on CIFAR10, except constants that depend on image size.
SETTINGS = cifar.SETTINGS | {
    "swae": {"loss.beta": 614.0},
    "spherical_swae": {"loss.beta": 122_880.0},
    "sphere_encoder": {},
    "vqvae": {"loss.beta": 15.0, "sample.sampler": "codes"},
}


def get_config(name: str = "standard") -> ConfigDict:
    config = default.fields(name)
    config.data.name = "celeb_a"
    config.data.flip = True
    config.data.crop = 148  # the face, as is usual
    config.data.size = 64
    config.model.latent_dim = 200
    config.model.stages = (32, 64, 128, 256)
    config.train.epochs = 100
    config.train.decay_epochs = (90,)
    return settings.apply(config, name, SETTINGS)
