"""One Gaussian of the embeddings' mean and covariance, in R^n or projected to a sphere.

It is a mixture with one component: parameters, samples and densities, also of a singular
covariance, are those of `hsjax.samplers.mixture`.
"""

import numpy as np

from hsjax.samplers.base import Sampler, checked, directions, float32, root
from hsjax.samplers.mixture import (
    Mixture,
    log_prob,
    log_prob_projected,
    sample,
    sample_projected,
)


@np.errstate(under="ignore")
def fit(means, **_) -> Mixture:
    """Mean, covariance and mean radius of the means [count, n].

    Raises:
      ValueError: fewer than 2 means, or a NaN or more than 1e30 among them.
    """
    embeddings = checked(means)
    covariance = np.cov(embeddings, rowvar=False)
    radius = directions(embeddings)[1]
    centres, factors = embeddings.mean(axis=0)[None], root(covariance)[None]
    return Mixture(*float32(np.zeros(1), centres, factors, radius))


gaussian = Sampler(fit, sample, log_prob, parameters=Mixture)
"""A Gaussian of the embeddings' mean and covariance."""

projected_gaussian = Sampler(fit, sample_projected, log_prob_projected, parameters=Mixture)
"""A Gaussian of the embeddings' mean and covariance, projected to their mean radius.

This is one reading of the paper's "von Mises-Fisher distribution with the same mean and covariance
as the embeddings" (section 4.4). A true von Mises-Fisher distribution cannot match a covariance.
"""
