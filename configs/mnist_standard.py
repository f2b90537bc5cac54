"""The standard VAE on MNIST, n = 128: the left half of the paper's figure 1.

Command: hsjax train --config=mnist_standard
Run time: about 90 seconds an epoch on two CPU cores; it is meant for an accelerator.
Prints (seed 0): after 3 epochs (--config.train.epochs=3) test MSE (sum) 13.6, k-NN accuracy 0.974.
A prepared tensorflow-datasets folder elsewhere: --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from hsjax.configs import mnist


def get_config() -> ConfigDict:
    return mnist.get_config("standard")
