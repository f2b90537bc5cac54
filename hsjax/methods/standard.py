"""The standard VAE (Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114), equation (1).

With `decoder_variance="learned"` it is the first stage of Dai and Wipf, 2019
(https://arxiv.org/abs/1903.05789): the decoder is N(reconstruction, γ² I), and γ² is learned, too.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from hsjax import losses, posteriors
from hsjax.methods.base import Method, outputs_of_gaussian

DECAY = 0.99  # of the running average of γ²


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Choices of the method; the only number of a VAE is β."""

    spec: str = dataclasses.field(metadata={"static": True})
    decoder_variance: str = dataclasses.field(metadata={"static": True})


def hyper(
    n: int,
    *,
    spec: Literal["paper", "published"] = "paper",
    decoder_variance: Literal["fixed", "learned"] = "fixed",
) -> Hyper:
    """Choices of the method.

    Args:
      n: latent dimension.
      spec: "paper", the KLD summed over the n coordinates (1); "published", their mean, as in the
        authors' code.
      decoder_variance: "learned" multiplies the KLD by 2γ². With β = 1 the loss is then 2γ² times
        the negative evidence bound of a decoder of variance γ². The best γ² is the mean squared
        error per value (Rybkin et al., 2021, https://arxiv.org/abs/2006.13202): it is kept as a
        running average, since gradient descent takes some 10⁴ steps to get there.
    """
    return Hyper(spec, decoder_variance)


def statistics(key, n: int, hyper: Hyper, images) -> dict:
    """The running average of γ², and the sum of its weights."""
    if hyper.decoder_variance == "fixed":
        return {}
    return {"decoder_variance": jnp.float32(0.0), "weight": jnp.float32(0.0)}


def update(hyper: Hyper, posterior, z, *, variables, images, reconstructions, **_) -> dict:
    """The running average, updated with this batch's mean squared error per value."""
    variance = jnp.mean((images - reconstructions) ** 2)
    new = {"decoder_variance": variance, "weight": jnp.float32(1.0)}
    return {name: DECAY * variables[name] + (1.0 - DECAY) * value for name, value in new.items()}


def regulariser(numbers: Hyper, posterior: posteriors.Gaussian, z, *, variables=None, **_) -> dict:
    """The KLD of the posterior from N(0, I), in nats, equation (1); times 2γ² if that is learned.

    γ² is 1 in the first step.
    """
    n = posterior.mean.shape[-1] if numbers.spec == "published" else 1
    kld = losses.gaussian_kl(posterior.mean, posterior.log_variance) / n
    if numbers.decoder_variance == "fixed":
        return {"regulariser": kld}
    weight = variables["weight"]
    variance = jnp.where(
        weight > 0, variables["decoder_variance"] / jnp.maximum(weight, 1e-30), 1.0
    )
    return {"regulariser": 2.0 * variance * kld, "kld": kld, "decoder_variance": variance}


standard = Method(
    head=outputs_of_gaussian,
    hyper=hyper,
    posterior=posteriors.gaussian,
    regulariser=regulariser,
    statistics=statistics,
    update=update,
)

standard_projected = standard._replace(project=True)
"""The same, with every latent projected to the sphere of radius √n before decoding (below (8))."""
