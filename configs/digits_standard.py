"""The standard VAE on scikit-learn's 8x8 digits.

Command: hsjax train --config=digits_standard
Run time: about a minute on two CPU cores, half of it for the evaluation.
Prints (seed 0): test MSE (sum) 0.880, 1000 x per value 13.7, k-NN accuracy 0.967.
"""

from ml_collections import ConfigDict

from hsjax.configs import digits


def get_config() -> ConfigDict:
    return digits.get_config("standard")
