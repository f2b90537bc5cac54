"""The standard VAE (Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114), equation (1)."""

import dataclasses
from typing import Literal

import jax

from hsjax import losses, posteriors
from hsjax.methods.base import Method, outputs_of_gaussian


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Choices of the method; a VAE has no numbers but β."""

    spec: str = dataclasses.field(metadata={"static": True})


def hyper(n: int, *, spec: Literal["paper", "published"] = "paper") -> Hyper:
    """Choices of the method.

    Args:
      n: latent dimension.
      spec: "paper", the KLD summed over the n coordinates (1); "published", their mean, as in the
        authors' code.
    """
    return Hyper(spec)


def regulariser(numbers: Hyper, posterior: posteriors.Gaussian, z, **_) -> dict:
    """The KLD of the posterior from N(0, I), in nats, equation (1)."""
    n = posterior.mean.shape[-1] if numbers.spec == "published" else 1
    return {"regulariser": losses.gaussian_kl(posterior.mean, posterior.log_variance) / n}


standard = Method(
    head=outputs_of_gaussian,
    hyper=hyper,
    posterior=posteriors.gaussian,
    regulariser=regulariser,
)

standard_projected = standard._replace(project=True)
"""The same with every latent on the sphere of radius √n before it is decoded (below (8))."""
