"""Latent-space methods: a file each, and a line in the table `METHODS`.

A method says what the encoder says of an image, how a latent is drawn, what pulls on it and where
new latents come from: see `Method`. Training, evaluation, sweeps and configs know none by name.
docs/extending.md shows how to add your own.

Example:
  >>> import jax, jax.numpy as jnp
  >>> method = METHODS["spherical"]
  >>> hyper = method.hyper(8, angle_gain=10.0)
  >>> posterior = method.posterior(jnp.zeros((5, method.head(8))))  # what an encoder gives
  >>> terms = method.regulariser(hyper, posterior, posterior.sample(jax.random.key(0)))
  >>> sorted(terms)
  ['mean_angles', 'mean_radius', 'regulariser', 'std_angles', 'std_radius']
"""

from hsjax.methods.autoencoder import autoencoder
from hsjax.methods.base import Bounds, Method, NonNegative, Positive
from hsjax.methods.cartesian import cartesian
from hsjax.methods.rae import rae
from hsjax.methods.sphere_ae import sphere_ae
from hsjax.methods.spherical import spherical
from hsjax.methods.standard import standard, standard_projected

__all__ = ["METHODS", "Bounds", "Method", "NonNegative", "Positive"]

METHODS: dict[str, Method] = {
    "standard": standard,
    "standard_projected": standard_projected,
    "cartesian": cartesian,
    "spherical": spherical,
    "autoencoder": autoencoder,
    "rae": rae,
    "sphere_ae": sphere_ae,
}
