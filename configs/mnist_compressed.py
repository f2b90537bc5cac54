"""x"""

from ml_collections import ConfigDict

from configs import mnist_standard


def get_config() -> ConfigDict:
    config = mnist_standard.get_config()
    config.model.project = True
    config.loss.kind = "spherical"
    config.loss.beta = 1.0
    config.loss.angle_gain = 10.0
    config.loss.annealing = "sqrt"
    config.sample.sampler = "projected_gaussian"
    return config
