"""Compression in hyperspherical coordinates (the paper), equations (4) to (8).

"Is the sparsity of high dimensional spaces the reason why VAEs are poor generative models?",
related: https://arxiv.org/abs/2507.15900. spec="published" is the objective of the authors' code.
"""

from typing import Annotated, Literal

from hsjax import losses, posteriors
from hsjax.methods.base import Bounds, Method, NonNegative, Positive, outputs_of_gaussian


def hyper(
    n: int,
    *,
    spec: Literal["paper", "published"] = "paper",
    compression: Literal["full", "half", "none"] = "full",
    mean_target: Annotated[float | None, Bounds(-1.0, 1.0)] = None,
    spread_target: Annotated[float | None, Bounds(0.0, 1.0)] = None,
    compressed_angles: Annotated[int, Bounds(0)] = 0,
    angle_gain: NonNegative = 1.0,
    radius_gain: NonNegative = 1.0,
    eps: Positive = 1e-3,
    variance_eps: Positive = 1e-4,
    std_radius: NonNegative = 1.0,
    std_angle_gain: Annotated[float | None, Bounds(0.0)] = 500_000.0,
) -> losses.Spec:
    """Targets and gains.

    Args:
      n: latent dimension, >= 2.
      spec: "paper", the text of (4)(5); "published", the authors' code.
      compression: target of the mean cosines of μ: "full" 1, "half" the diagonal's, "none" 0 (7).
      mean_target: of the paper spec, one target for all cosines instead of compression.
      spread_target: of the paper spec, for the cosines of μ; None: the prior's 1/√(n-k+1).
      compressed_angles: of the paper spec, how many angles of μ, from the first on, these targets
        are for; the rest keep the prior's, 0 and 1/√(n-k+1). 0: all n - 1.
      angle_gain: of the paper spec, overall gain of the angle terms (4).
      radius_gain: of the paper spec, overall gain of the radius terms (5).
      eps: of the paper spec, added to squared tails (published code).
      variance_eps: of the paper spec, added to batch variances (published code).
      std_radius: of the published spec, factor on the target of σ's radius; a later version of
        the code has 0.001.
      std_angle_gain: of the published spec, gain of σ's angles: the authors' are 50,000 for MNIST,
        225,000 for Fashion-MNIST, 500,000 for CIFAR10, SVHN and CelebA. None: not chosen yet.

    Raises:
      ValueError: as `losses.paper_spec`; spec "published" without std_angle_gain.
    """
    if spec == "published":
        if std_angle_gain is None:
            raise ValueError(
                "std_angle_gain is not set: the authors' is known for MNIST (50000), Fashion-MNIST "
                "(225000), CIFAR10, SVHN and CelebA (500000) alone, so give one, such as "
                "--config.method.std_angle_gain=500000"
            )
        return losses.published_spec(
            n, compression, std_radius=std_radius, std_angle_gain=std_angle_gain
        )
    return losses.paper_spec(
        n,
        compression=compression,
        mean_target=mean_target,
        spread_target=spread_target,
        compressed_angles=compressed_angles or None,
        angle_gain=angle_gain,
        radius_gain=radius_gain,
        eps=eps,
        variance_eps=variance_eps,
    )


def regulariser(numbers: losses.Spec, posterior: posteriors.Gaussian, z, **_) -> dict:
    """The weighted sum of (4) and (5), and the four terms before their overall gains."""
    terms = losses.spherical_kl(posterior.mean, posterior.std, numbers)
    return {"regulariser": losses.total(terms, numbers), **terms._asdict()}


spherical = Method(
    head=outputs_of_gaussian,
    hyper=hyper,
    posterior=posteriors.gaussian,
    regulariser=regulariser,
)
