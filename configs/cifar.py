"""CIFAR10, n = 200, with any method: --config=configs/cifar.py:METHOD.

Command: python main.py --config=configs/cifar.py:rae
Run time: about 80 seconds an epoch on two CPU cores; it is meant for an accelerator.
A prepared tensorflow-datasets folder elsewhere: --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from configs import default

# What a method takes on these data; the rest is in configs/default.py and the method's file.
SETTINGS = {
    "standard": {"loss.beta": 0.3},  # about the MSE of the compressed twin
    "standard_projected": {"loss.beta": 0.3},
    "cartesian": {"loss.beta": 0.3},
    "spherical": {
        "model.project": True,
        "method.angle_gain": 10.0,  # the paper leaves it open
        "loss.annealing": "sqrt",
        "sample.sampler": "projected_gaussian",
    },
    "autoencoder": {"sample.sampler": "gmm"},
    # The authors' constants.
    "rae": {"loss.beta": 0.048, "method.decoder_weight": 0.064, "sample.sampler": "gmm"},
    "sphere_ae": {"sample.sampler": "own"},
}


def get_config(method: str = "standard") -> ConfigDict:
    config = default.get_config(method)
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.latent_dim = 200
    config.evaluate.feature_steps = 2000
    config.update_from_flattened_dict(SETTINGS.get(method, {}))
    return config
