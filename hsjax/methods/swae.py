"""SWAE, the sliced-Wasserstein autoencoder (Kolouri et al., 2018, https://arxiv.org/abs/1804.01947).

The regulariser is the sliced-Wasserstein distance of the batch from as many samples of the target.
"""

import dataclasses
from typing import Annotated, Literal

import jax
from jax import Array

from hsjax import distances, posteriors
from hsjax.methods.base import Bounds, Method, normal, outputs_of_point, point_on_sphere, uniform


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Choices of the method."""

    target: str = dataclasses.field(metadata={"static": True})
    slices: int = dataclasses.field(metadata={"static": True})


def hyper(
    n: int,
    *,
    target: Literal["normal", "uniform_sphere"] = "normal",
    slices: Annotated[int, Bounds(1, 100_000)] = 50,
) -> Hyper:
    """Choices of the method.

    Args:
      n: latent dimension.
      target: distribution that the latents should have: N(0, I), or uniform on the sphere of radius
        √n, to which the encoder's outputs are then projected. The authors' targets are
        two-dimensional shapes.
      slices: lines that a batch is projected to.
    """
    return Hyper(target, slices)


def posterior(outputs: Array, *, hyper, **_) -> posteriors.Point:
    """The outputs [batch, n], on the sphere if the target is."""
    return (
        point_on_sphere(outputs) if hyper.target == "uniform_sphere" else posteriors.Point(outputs)
    )


def prior(key: Array, count: int, n: int, *, hyper, **_) -> Array:
    """Samples of the target, [count, n]."""
    return (uniform if hyper.target == "uniform_sphere" else normal)(key, count, n)


def regulariser(numbers: Hyper, posterior: posteriors.Point, z, *, key, **_) -> dict:
    """n times the sliced distance: about the squared distance that latents have to move.

    The authors' weight of the distance itself is 10, relative to the mean error per value. So with
    a summed error β is 10 values / n, which is 61 for MNIST at n = 128.
    """
    slice_key, target_key = jax.random.split(key)
    count, n = z.shape
    target = prior(target_key, count, n, hyper=numbers)
    lines = distances.directions(slice_key, numbers.slices, n)
    return {"regulariser": n * distances.sliced_wasserstein(z, target, lines)}


swae = Method(
    head=outputs_of_point,
    hyper=hyper,
    posterior=posterior,
    regulariser=regulariser,
    prior=prior,
)
