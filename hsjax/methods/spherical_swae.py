"""The spherical sliced-Wasserstein autoencoder (Bonet et al., 2023, arXiv 2206.08780).

https://arxiv.org/abs/2206.08780, section 5.3: encoder outputs are projected to a sphere, and the
regulariser is the spherical sliced-Wasserstein distance of the batch from the uniform distribution
or from a von Mises-Fisher distribution: an island as in the paper, but without angle terms.
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax import Array

from hsjax import distances, posteriors
from hsjax.methods.base import (
    Bounds,
    Method,
    NonNegative,
    outputs_of_point,
    point_on_sphere,
    uniform,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Numbers and choices of the method."""

    kappa: Array | float
    target: str = dataclasses.field(metadata={"static": True})
    slices: int = dataclasses.field(metadata={"static": True})


def hyper(
    n: int,
    *,
    target: Literal["uniform_sphere", "von_mises_fisher"] = "uniform_sphere",
    kappa: NonNegative = 10.0,
    slices: Annotated[int, Bounds(1, 100_000)] = 200,
) -> Hyper:
    """Numbers and choices of the method.

    Args:
      n: latent dimension.
      target: distribution that the latents should have on the sphere of radius √n: uniform, in
        closed form, or von Mises-Fisher around (1, ..., 1), by samples.
      kappa: concentration of the von Mises-Fisher distribution. The authors' 10 is for 3
        dimensions; at n = 128 the mean cosine to its direction is 0.5 for 85 and 0.9 for 603.
      slices: planes that a batch is projected to; the authors take 1000.
    """
    return Hyper(kappa, target, slices)


def prior(key: Array, count: int, n: int, *, hyper: Hyper, **_) -> Array:
    """Samples of the target, [count, n]."""
    if hyper.target == "uniform_sphere":
        return uniform(key, count, n)
    direction = jnp.full((count, n), n**-0.5, jnp.float32)
    kappa = jnp.full(count, hyper.kappa, jnp.float32)
    return posteriors.VonMisesFisher(direction, kappa, n**0.5).sample(key)


def regulariser(numbers: Hyper, posterior: posteriors.Point, z, *, key, **_) -> dict:
    """The distance, on circles of length 1: at most 1/12 from the uniform distribution.

    The authors' weight is 10 relative to the mean error per value: β = 7840 for MNIST's summed
    error.
    """
    slice_key, target_key = jax.random.split(key)
    count, n = z.shape
    planes = distances.planes(slice_key, numbers.slices, n)
    if numbers.target == "uniform_sphere":
        distance = distances.spherical_sliced_wasserstein_uniform(z, planes)
    else:
        target = prior(target_key, count, n, hyper=numbers)
        distance = distances.spherical_sliced_wasserstein(z, target, planes)
    return {"regulariser": distance}


spherical_swae = Method(
    head=outputs_of_point,
    hyper=hyper,
    posterior=point_on_sphere,
    regulariser=regulariser,
    prior=prior,
)
