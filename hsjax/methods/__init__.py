"""Latent-space methods: one per file, and a line in the table `METHODS`.

A method defines the posterior of an image, how a latent is drawn from it, the regulariser and where
new latents come from: see `Method`. Training and evaluation refer to no method by name.
docs/extending.md shows how to add your own.

Example:
  >>> import jax, jax.numpy as jnp
  >>> method = METHODS["spherical"]
  >>> hyper = method.hyper(8, angle_gain=10.0)
  >>> posterior = method.posterior(jnp.zeros((5, method.head(8))), hyper=hyper)  # from an encoder
  >>> terms = method.regulariser(hyper, posterior, posterior.sample(jax.random.key(0)))
  >>> sorted(terms)
  ['mean_angles', 'mean_radius', 'regulariser', 'std_angles', 'std_radius']
"""

from hsjax.methods.autoencoder import autoencoder
from hsjax.methods.base import Bounds, Method, NonNegative, Positive
from hsjax.methods.cartesian import cartesian
from hsjax.methods.mixture import mixture
from hsjax.methods.rae import rae
from hsjax.methods.sphere_ae import sphere_ae
from hsjax.methods.sphere_encoder import sphere_encoder
from hsjax.methods.spherical import spherical
from hsjax.methods.spherical_swae import spherical_swae
from hsjax.methods.standard import standard, standard_projected
from hsjax.methods.svae import svae
from hsjax.methods.swae import swae
from hsjax.methods.vampprior import vampprior
from hsjax.methods.vqvae import vqvae
from hsjax.methods.wae import wae

__all__ = ["METHODS", "Bounds", "Method", "NonNegative", "Positive"]

METHODS: dict[str, Method] = {
    "standard": standard,
    "standard_projected": standard_projected,
    "cartesian": cartesian,
    "spherical": spherical,
    "autoencoder": autoencoder,
    "rae": rae,
    "sphere_ae": sphere_ae,
    "svae": svae,
    "swae": swae,
    "wae": wae,
    "spherical_swae": spherical_swae,
    "sphere_encoder": sphere_encoder,
    "mixture": mixture,
    "vampprior": vampprior,
    "vqvae": vqvae,
}
