"""The compressed VAE on CelebA at 64x64, n = 200: larger images than the paper's.

Command: python main.py --config=configs/celeba_compressed.py
Run time: not measured on CelebA; it is meant for an accelerator. See celeba_standard.py for the
  data; a folder of own images: --config.data.name=FOLDER/ with FOLDER/train and FOLDER/test.
"""

from ml_collections import ConfigDict

from configs import celeba_standard


def get_config() -> ConfigDict:
    config = celeba_standard.get_config()
    config.model.project = True
    config.loss.kind = "spherical"
    config.loss.beta = 1.0
    config.loss.angle_gain = 10.0  # the paper leaves it open
    config.loss.annealing = "sqrt"
    config.loss.annealing_epochs = 33  # a third of the run, as in the paper
    config.sample.sampler = "projected_gaussian"
    return config
