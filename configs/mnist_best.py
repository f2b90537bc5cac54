"""The angles' best on MNIST: nearer to the test images than a standard VAE at equal error.

The compressed VAE with mean and spread of all cosines of μ pulled to 0 instead of the paper's
targets, and a larger weight of the angles. Simpler models do as well: docs/studies.md.

Command: hsjax train --config=mnist_best
Run time: about 90 seconds an epoch on two CPU cores; it is meant for an accelerator.
Results: docs/studies.md has three seeds of a narrower network after four epochs.
A prepared tensorflow-datasets folder elsewhere: --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from hsjax.configs import mnist_compressed


def get_config() -> ConfigDict:
    config = mnist_compressed.get_config()
    config.method.mean_target = 0.0
    config.method.spread_target = 0.0
    config.method.angle_gain = 60.0
    return config
