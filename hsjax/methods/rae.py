"""RAE-L2, the regularised autoencoder (Ghosh et al., 2020, https://arxiv.org/abs/1903.12436).

Its loss is the error + β (½ ‖z‖² + decoder_weight ‖kernels of the decoder‖²) (its section 3). New
latents come from a mixture fitted to the embeddings, the sampler gmm; `own` is N(0, I).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from hsjax import posteriors
from hsjax.methods.base import Method, NonNegative, outputs_of_point


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Numbers of the method."""

    decoder_weight: Array | float


def hyper(n: int, *, decoder_weight: NonNegative = 0.008) -> Hyper:
    """Numbers of the method.

    Args:
      n: latent dimension.
      decoder_weight: weight of the decoder's kernels, relative to β. The authors' constants, for an
        error summed over an image's values, are β 0.0128 and weight 0.008 for MNIST at n = 16, and
        β 0.048 and weight 0.064 for CIFAR10 at n = 128.
    """
    return Hyper(decoder_weight)


def regulariser(numbers: Hyper, posterior: posteriors.Point, z, *, params, **_) -> dict:
    """½ ‖z‖², mean over the batch, plus ‖kernels‖² of the decoder times its weight."""
    latents = 0.5 * jnp.mean(jnp.sum(z**2, axis=-1))
    leaves = jax.tree.leaves_with_path(params["decoder"])
    kernels = [x for path, x in leaves if path[-1].key == "kernel"]  # no biases, no BatchNorm
    decoder = sum(jnp.sum(kernel**2) for kernel in kernels)
    return {
        "regulariser": latents + numbers.decoder_weight * decoder,
        "latents": latents,
        "decoder": decoder,
    }


rae = Method(
    head=outputs_of_point,
    hyper=hyper,
    posterior=posteriors.point,
    regulariser=regulariser,
)
