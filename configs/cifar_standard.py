"""The standard VAE on CIFAR10, n = 200: a point of the paper's figure 2.

Command: hsjax train --config=cifar_standard
Run time: about 80 seconds an epoch on two CPU cores; it is meant for an accelerator.
Prints (seed 0): after 2 epochs (--config.train.epochs=2)
  test MSE (sum) 60.6, 1000 x per value 19.7.
A prepared tensorflow-datasets folder elsewhere: --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from hsjax.configs import cifar


def get_config() -> ConfigDict:
    return cifar.get_config("standard")
