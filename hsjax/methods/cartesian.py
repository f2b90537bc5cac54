"""The KL-like objective in batch statistics of Cartesian coordinates, the paper's equation (3)."""

from hsjax import losses, posteriors
from hsjax.methods.base import Method, outputs_of_gaussian


def hyper(n: int) -> tuple[()]:
    """The method has no numbers: the targets are those of the prior N(0, I)."""
    return ()


def regulariser(numbers: tuple[()], posterior: posteriors.Gaussian, z, **_) -> dict:
    """Squared distance of μ from 0 and of σ from 1, equation (3)."""
    return {"regulariser": losses.cartesian_kl(posterior.mean, posterior.std)}


cartesian = Method(
    head=outputs_of_gaussian,
    hyper=hyper,
    posterior=posteriors.gaussian,
    regulariser=regulariser,
)
