"""The compressed VAE."""

from ml_collections import ConfigDict

from configs import digits_standard


def get_config() -> ConfigDict:
    config = digits_standard.get_config()
    config.model.project = True
    config.loss.kind = "spherical"
    config.loss.beta = 1.0
    config.loss.angle_gain = 3.0
    config.loss.annealing = "sqrt"
    config.loss.annealing_epochs = 30
    config.sample.sampler = "projected_gaussian"
    return config
