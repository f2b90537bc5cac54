"""Variational autoencoders whose latent space is written in hyperspherical coordinates.

Importing hsjax gives the library, which needs only JAX, NumPy and SciPy (to be fitted, mixtures
also need scikit-learn, and trained samplers optax):

* `hsjax.coordinates`: Cartesian vectors to radius and angles and back, the volume element;
* `hsjax.statistics`: the mean and variance of these over a batch;
* `hsjax.losses`: the objectives, equations (1) to (6);
* `hsjax.posteriors`, `hsjax.methods`: distributions of a latent, and methods, one per file;
* `hsjax.distances`: distances between samples of latents, by optimal transport or kernels;
* `hsjax.samplers`: where new latents come from.

What judges a model is in `hsjax.metrics`; the network and the experiment around it are in
`hsjax.models`, `hsjax.training`, `hsjax.evaluation` and `hsjax.experiment`. These are loaded when
they are first asked for, as they need Flax, Orbax and more: in a clone, `pip install '.[train]'`.

`hsjax.load(path)` gives a trained model, `hsjax.train(config, workdir)` trains one, and
`hsjax.evaluate(workdir)` judges it again.

Example:
  >>> import jax.numpy as jnp
  >>> import hsjax
  >>> radius, angles = hsjax.coordinates.to_spherical(jnp.ones(4))
  >>> float(radius)
  2.0
"""

import importlib
from typing import Any

from hsjax import coordinates, distances, losses, methods, posteriors, samplers, statistics

__all__ = [
    "coordinates",
    "distances",
    "losses",
    "methods",
    "posteriors",
    "samplers",
    "statistics",
]
__version__ = "0.1.0"


_FUNCTIONS = {
    "load": "runs.load",
    "train": "experiment.train_and_evaluate",
    "evaluate": "experiment.evaluate",
}


def __getattr__(name: str) -> Any:
    """A module or function that is asked for the first time, as in `from hsjax import training`.

    Raises:
      AttributeError: there is no such one.
      ModuleNotFoundError: it needs a package that is not installed.
    """
    owner, _, function = _FUNCTIONS.get(name, name).partition(".")
    module = f"hsjax.{owner}"
    try:
        found = importlib.import_module(module)
        return getattr(found, function) if function else found
    except ModuleNotFoundError as error:
        if error.name == module:
            raise AttributeError(f"module 'hsjax' has no attribute {name!r}") from None
        message = f"{module} needs {error.name}, which is not installed"
        how = "in a clone, pip install '.[train]'"
        raise ModuleNotFoundError(f"{message}: {how}", name=error.name) from None
