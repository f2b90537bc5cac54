"""The compressed VAE on CelebA at 64x64, n = 200: larger images than the paper's.

Command: hsjax train --config=celeba_compressed
Run time: not measured on CelebA; it is meant for an accelerator. See celeba_standard.py for the
  data. For your own images: --config.data.name=FOLDER/ with FOLDER/train and FOLDER/test.
"""

from ml_collections import ConfigDict

from hsjax.configs import celeba


def get_config() -> ConfigDict:
    return celeba.get_config("spherical")
