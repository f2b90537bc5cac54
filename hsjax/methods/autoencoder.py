"""The plain autoencoder: no regulariser. With a mixture fitted to its latents it is hard to beat.

"From variational to deterministic autoencoders" (Ghosh et al., 2020,
https://arxiv.org/abs/1903.12436), AE in its table 1. Its `own` samples come from N(0, I), but
nothing pulls its latents towards that: choose a fitted sampler, such as gmm.
"""

import jax.numpy as jnp

from hsjax import posteriors
from hsjax.methods.base import Method, outputs_of_point


def hyper(n: int) -> tuple[()]:
    """The method has no numbers."""
    return ()


def regulariser(numbers: tuple[()], posterior: posteriors.Point, z, **_) -> dict:
    """No regulariser: 0."""
    return {"regulariser": jnp.zeros((), jnp.float32)}


autoencoder = Method(
    head=outputs_of_point,
    hyper=hyper,
    posterior=posteriors.point,
    regulariser=regulariser,
)
