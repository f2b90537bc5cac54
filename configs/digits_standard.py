"""The standard VAE on scikit-learn's 8x8 digits."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "digits"
    config.model.latent_dim = 32
    config.model.stages = (16, 32)
    config.loss.beta = 0.1
    config.train.epochs = 100
    config.train.batch_size = 100
    config.train.learning_rate = 1e-3
    config.train.decay_epochs = (80,)
    config.train.checkpoint_every = 20
    return config
