"""Variational autoencoders whose latent space is written in hyperspherical coordinates.

Importing hsjax gives the library, which needs JAX and NumPy alone (three samplers, to be fitted,
SciPy and scikit-learn):

* `hsjax.coordinates`: Cartesian vectors to radius and angles and back, the volume element;
* `hsjax.losses`: the objectives, equations (1) to (6);
* `hsjax.samplers`: where new latents come from.

What judges a model is in `hsjax.metrics`; the network and the experiment around it are in
`hsjax.models`, `hsjax.train`, `hsjax.evaluate` and `hsjax.experiment`. These are imported by name,
as they load Flax, Orbax and more.

Example:
  >>> import jax.numpy as jnp
  >>> import hsjax
  >>> radius, angles = hsjax.coordinates.to_spherical(jnp.ones(4))
  >>> float(radius)
  2.0
"""

from hsjax import coordinates, losses, samplers

__all__ = ["coordinates", "losses", "samplers"]
__version__ = "0.1.0"
