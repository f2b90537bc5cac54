"""x"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.latent_dim = 200
    config.loss.beta = 0.3
    return config
