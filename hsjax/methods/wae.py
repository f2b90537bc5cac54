"""WAE-MMD, the Wasserstein autoencoder (Tolstikhin et al., 2018, https://arxiv.org/abs/1711.01558).

The regulariser is the maximum mean discrepancy of the batch from as many samples of the target.
"""

import dataclasses
from typing import Literal

import jax
from jax import Array

from hsjax import distances, posteriors
from hsjax.methods.base import Method, Positive, outputs_of_point
from hsjax.methods.swae import posterior, prior

FACTORS = {"imq": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), "rbf": (1.0,)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Numbers and choices of the method."""

    scale: Array | float
    target: str = dataclasses.field(metadata={"static": True})
    kernel: str = dataclasses.field(metadata={"static": True})


def hyper(
    n: int,
    *,
    target: Literal["normal", "uniform_sphere"] = "normal",
    kernel: Literal["imq", "rbf"] = "imq",
    scale: Positive = 1.0,
) -> Hyper:
    """Numbers and choices of the method.

    Args:
      n: latent dimension.
      target: distribution that the latents should have: N(0, I), or uniform on the sphere of radius
        √n, to which the encoder's outputs are then projected.
      kernel: "imq", the sum of the authors' seven inverse multiquadratics, or "rbf", a Gaussian.
      scale: factor on the kernel's squared width, in units of 2n.
    """
    return Hyper(scale, target, kernel)


def regulariser(numbers: Hyper, posterior: posteriors.Point, z, *, key, **_) -> dict:
    """MMD², algorithm 2 of the paper.

    The authors' weights are 10 (MNIST) and 100 (CelebA) relative to 0.05 of the error, which for
    CelebA is that of images in [-1, 1]: β is 200 and 500.
    """
    target = prior(key, *z.shape, hyper=numbers)
    scales = tuple(numbers.scale * factor for factor in FACTORS[numbers.kernel])
    mmd = distances.maximum_mean_discrepancy(z, target, kernel=numbers.kernel, scales=scales)
    return {"regulariser": mmd}


wae = Method(
    head=outputs_of_point,
    hyper=hyper,
    posterior=posterior,
    regulariser=regulariser,
    prior=prior,
)
