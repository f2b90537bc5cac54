"""Variational autoencoders whose latent space is written in hyperspherical coordinates."""

from hsjax import coordinates, losses, samplers

__all__ = ["coordinates", "losses", "samplers"]
__version__ = "0.1.0"
