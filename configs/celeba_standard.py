"""The standard VAE on CelebA at 64x64, n = 200: larger images than the paper's.

Command: hsjax train --config=celeba_standard
Run time: not measured on CelebA; it is meant for an accelerator. The first start decodes the
  set's 180,000 images and keeps them for later starts.
The set has no labels, so images are judged by a network of random weights, FD[random-conv], unless
  evaluate.features=inception and its weights are given.
CelebA's host often refuses automatic downloads; tensorflow-datasets then says which files to
  fetch by hand. Other images: --config.data.name=FOLDER/ with FOLDER/train and FOLDER/test,
  or images alone.
"""

from ml_collections import ConfigDict

from hsjax.configs import celeba


def get_config() -> ConfigDict:
    return celeba.get_config("standard")
