"""S-VAE, the hyperspherical VAE (Davidson et al., 2018, https://arxiv.org/abs/1804.00891).

The posterior is a von Mises-Fisher distribution around the encoder's direction, with one
concentration κ per image. The regulariser is its KLD from the uniform distribution on the sphere.
Latents lie on the sphere of radius √n, in the paper on the unit sphere; the decoder's first
BatchNorm undoes the factor.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from hsjax import coordinates, posteriors
from hsjax.methods.base import Method, NonNegative, Positive, uniform

_LAWS: dict[str, type[posteriors.VonMisesFisher] | type[posteriors.PowerSpherical]] = {
    "von_mises_fisher": posteriors.VonMisesFisher,
    "power_spherical": posteriors.PowerSpherical,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Numbers and choices of the method."""

    least_kappa: Array | float
    kappa_scale: Array | float
    law: str = dataclasses.field(metadata={"static": True})


def hyper(
    n: int,
    *,
    law: Literal["von_mises_fisher", "power_spherical"] = "von_mises_fisher",
    least_kappa: NonNegative = 1.0,
    kappa_scale: Positive = 1.0,
) -> Hyper:
    """Numbers and choices of the method.

    Args:
      n: latent dimension.
      law: distribution of the posterior; "power_spherical" (De Cao and Aziz, 2020,
        https://arxiv.org/abs/2006.04437) needs no rejection.
      least_kappa: κ = least_kappa + kappa_scale n softplus(the encoder's last output). The
        authors' 1 keeps the posterior from collapsing.
      kappa_scale: see least_kappa; the authors use 1/n. An untrained encoder then has κ = 1.7, at
        n = 128 a mean cosine of 0.01 to the direction; with 1 it has κ = 0.7 n, a mean cosine of
        0.5.
    """
    return Hyper(least_kappa, kappa_scale, law)


def head(n: int) -> int:
    """n + 1: a direction and κ."""
    return n + 1


def posterior(
    outputs: Array, *, hyper: Hyper, **_
) -> posteriors.VonMisesFisher | posteriors.PowerSpherical:
    """The distribution around the first n outputs of [batch, n + 1], its κ from the last."""
    n = outputs.shape[-1] - 1
    scale = n * hyper.kappa_scale
    kappa = hyper.least_kappa + scale * jax.nn.softplus(outputs[:, -1])
    law = _LAWS[hyper.law]
    return law(coordinates.project(outputs[:, :-1], 1.0), kappa, n**0.5)


def regulariser(numbers: Hyper, posterior, z, **_) -> dict:
    """The KLD from the uniform distribution (the paper's section 3.2), in nats, and q's width."""
    return {
        "regulariser": jnp.mean(posterior.kl_to_uniform()),
        "kappa": jnp.mean(posterior.kappa),
        "mean_cosine": jnp.mean(posterior.mean_cosine()),
    }


svae = Method(
    head=head,
    hyper=hyper,
    posterior=posterior,
    regulariser=regulariser,
    prior=uniform,
)
