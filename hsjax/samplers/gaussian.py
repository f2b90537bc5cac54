"""One Gaussian of the embeddings' mean and covariance, in R^n or projected to a sphere.

It is a mixture of one: parameters, samples and densities are those of `hsjax.samplers.mixture`,
and what is said there of a singular covariance holds here.
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

One reading of the paper's "von Mises-Fisher distribution with the same mean and covariance as the
embeddings" (section 4.4), which a von Mises-Fisher distribution proper cannot have.
"""
