"""Variational autoencoders whose latent space is written in hyperspherical coordinates."""

__version__ = "0.1.0"
