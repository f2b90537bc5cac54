"""The compressed VAE on CIFAR10, n = 200: a point of the paper's figure 2.

Command: python main.py --config=configs/cifar_compressed.py
Run time: about 80 seconds an epoch on two CPU cores; it is meant for an accelerator.
Prints (seed 0): after 2 epochs (--config.train.epochs=2 --config.loss.annealing_epochs=2)
  test MSE (sum) about 56, 1000 x per value about 18.
A prepared tensorflow-datasets folder elsewhere: --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from configs import cifar_standard


def get_config() -> ConfigDict:
    config = cifar_standard.get_config()
    config.model.project = True
    config.loss.kind = "spherical"
    config.loss.beta = 1.0
    config.loss.angle_gain = 10.0  # the paper leaves it open
    config.loss.annealing = "sqrt"
    config.sample.sampler = "projected_gaussian"
    return config
