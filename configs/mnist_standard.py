"""x"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "mnist"
    config.model.latent_dim = 128
    config.loss.beta = 0.3
    return config
