"""Compression in hyperspherical coordinates (the paper), equations (4) to (8).

https://arxiv.org/abs/2507.15900, with the equation numbers of its version for review, "Is the
sparsity of high dimensional spaces the reason why VAEs are poor generative models?".
spec="published" is the objective of the authors' code.
With `classes` every class has an axis of its own, as in https://arxiv.org/abs/2601.18823.
"""

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hsjax import losses, posteriors
from hsjax.methods.base import Bounds, Method, NonNegative, Positive, outputs_of_gaussian


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByClass:
    """The spec of each class, the number of classes, and the stride between their axes."""

    spec: losses.Spec
    classes: int = dataclasses.field(metadata={"static": True})
    stride: int = dataclasses.field(metadata={"static": True})


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
    classes: Annotated[int, Bounds(0)] = 0,
    class_stride: Annotated[int, Bounds(0)] = 10,
) -> losses.Spec | ByClass:
    """Targets and gains.

    Args:
      n: latent dimension, >= 2.
      spec: "paper", equations (4) and (5); "published", the objective of the authors' code.
      compression: target of the mean cosines of μ: "full" 1, "half" the diagonal's, "none" 0 (7).
      mean_target: paper spec only: one target for all mean cosines of μ, in place of compression.
      spread_target: paper spec only: target spread of the cosines of μ; None: the prior's,
        1/√(n-k+1).
      compressed_angles: number of leading angles of μ that get these targets; the others keep the
        prior's, 0 and 1/√(n-k+1). 0: all n - 1.
      angle_gain: paper spec only: overall gain of the angle terms (4).
      radius_gain: paper spec only: overall gain of the radius terms (5).
      eps: paper spec only: added to squared tails (published code).
      variance_eps: paper spec only: added to batch variances (published code).
      std_radius: published spec only: factor on the target of σ's radius; a later version of the
        code has 0.001.
      std_angle_gain: published spec only: gain of σ's angles; the authors' are 50,000 for MNIST,
        225,000 for Fashion-MNIST, 500,000 for CIFAR10, SVHN and CelebA. None: not chosen yet.

      classes: number of classes, each of which gets its own axis; 0: labels are ignored. With the
        published spec, the first mean cosine then weighs 100 times as much and the last one
        nothing, and from epoch 102 on the weights grow: see `grown`.
      class_stride: offset in coordinates between the axes of two classes (published code: 10).

    Raises:
      ValueError: as `losses.paper_spec`; spec "published" without std_angle_gain; a stride that
        gives two classes the same axis.
    """
    if spec == "published":
        if std_angle_gain is None:
            raise ValueError(
                "std_angle_gain is not set: the authors' is known for MNIST (50000), Fashion-MNIST "
                "(225000), CIFAR10, SVHN and CelebA (500000) alone, so give one, such as "
                "--config.method.std_angle_gain=500000"
            )
        weights = np.r_[100.0, np.ones(max(n - 3, 0)), 0.0][: n - 1] if classes else 1.0
        found = losses.published_spec(
            n,
            compression,
            compressed_angles=compressed_angles or None,
            mean_weights=weights,
            std_radius=std_radius,
            std_angle_gain=std_angle_gain,
        )
    else:
        found = losses.paper_spec(
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
    if classes * math.gcd(class_stride, n) > n:
        raise ValueError(
            f"class_stride is {class_stride}: two of {classes} classes would have one axis of "
            f"n = {n}; with 1 up to n classes have their own"
        )
    return ByClass(found, classes, class_stride) if classes else found


def grown(spec: losses.Spec, epoch) -> losses.Spec:
    """The published spec by class in an epoch, counted from 1.

    With e = epoch - 1 > 100 the mean part of the first angle of μ weighs 1.5 times as much, and
    those of the others √(e - 101) + 1 times (code of https://arxiv.org/abs/2601.18823).
    """
    e = jnp.asarray(epoch, jnp.float32) - 1.0
    n = spec.mean_gain.shape[1]
    others = jnp.sqrt(jnp.maximum(e - 101.0, 0.0)) + 1.0
    growth = jnp.where(jnp.arange(n) == 0, 1.5, jnp.where(jnp.arange(n) < n - 1, others, 1.0))
    of_mean = jnp.where(e > 100.0, growth, 1.0)
    gains = spec.mean_gain * jnp.stack([of_mean, jnp.ones(n)])
    return dataclasses.replace(spec, mean_gain=gains)


def regulariser(
    numbers: losses.Spec | ByClass, posterior, z, *, labels=None, epoch=None, **_
) -> dict:
    """The weighted sum of (4) and (5), and the four terms before their overall gains.

    With classes, also how many of them had fewer than two images in the batch.
    """
    if isinstance(numbers, losses.Spec):
        terms = losses.spherical_kl(posterior.mean, posterior.std, numbers)
        return {"regulariser": losses.total(terms, numbers), **terms._asdict()}
    spec = numbers.spec
    if epoch is not None and spec.form == "kl":
        spec = grown(spec, epoch)
    terms, absent = losses.spherical_kl_by_class(
        posterior.mean,
        posterior.std,
        spec,
        labels,
        classes=numbers.classes,
        stride=numbers.stride,
    )
    total = losses.total(terms, spec)
    return {"regulariser": total, **terms._asdict(), "absent_classes": absent}


def check(numbers: losses.Spec | ByClass, labels: np.ndarray | None, batch_size: int) -> list[str]:
    """Check that batches hold enough images of each class."""
    if isinstance(numbers, losses.Spec):
        return []
    classes = numbers.classes
    if labels is None:
        raise ValueError("classes needs labels, and the data set has none: set method.classes=0")
    if (most := int(labels.max())) >= classes:
        raise ValueError(f"classes is {classes}, and there are labels up to {most}")
    if batch_size < 2 * classes:
        raise ValueError(
            f"classes is {classes}, and a batch has {batch_size} images: raise train.batch_size to "
            f"{2 * classes} or more, for two images of each class"
        )
    share = np.bincount(labels, minlength=classes) / len(labels)
    few = (1 - share) ** batch_size + batch_size * share * (1 - share) ** (batch_size - 1)
    if (expected := few.sum()) < 1e-3:
        return []
    return [
        f"a batch of {batch_size} lacks {expected:.2g} of the {classes} classes on average (it has "
        "fewer than two images of them); these don't count in it: a larger train.batch_size helps"
    ]


spherical = Method(
    head=outputs_of_gaussian,
    hyper=hyper,
    posterior=posteriors.gaussian,
    regulariser=regulariser,
    check=check,
)
