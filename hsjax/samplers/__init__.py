"""Samplers, one per file: each fits a distribution to latents, samples it and gives its density.

A sampler has `fit(means, **context)`, `sample(parameters, key, count)` and, if it has a
density, `log_prob(parameters, z)`; see `Sampler`.

`means` are the encoder's posterior means, [count, n], called embeddings here. `fit` runs once, on
the host in float64, and raises a ValueError for fewer than 2 embeddings, a NaN, or a number beyond
1e30. It needs only the means, except for `own`, which takes the method's `prior` by keyword, and
`codes`. Trained samplers need optax and at least 20 embeddings.

`sample` is pure JAX with an explicit key, jittable with a static count, and returns float32
[count, n]. A model with `project` rescales every sample to √n before decoding. Other models use the
radius drawn here: for samplers on a sphere it is the embeddings' mean radius, except for
`uniform_sphere`.

`slerp` interpolates between two latents along the sphere.

Example:
  >>> import jax
  >>> from hsjax import coordinates
  >>> embeddings = jax.random.normal(jax.random.key(0), (500, 8)) + 1.0
  >>> parameters = projected_gaussian.fit(embeddings)
  >>> z = projected_gaussian.sample(parameters, jax.random.key(1), 1000)
  >>> z.shape, bool(abs(coordinates.radius(z) - parameters.radius).max() < 1e-4)
  ((1000, 8), True)
  >>> projected_gaussian.log_prob(parameters, z).shape  # per area of that sphere
  (1000,)
"""

from hsjax.samplers.angles import AngleCopula, angles
from hsjax.samplers.base import Sampler
from hsjax.samplers.codes import codes
from hsjax.samplers.flow import flow
from hsjax.samplers.gaussian import gaussian, projected_gaussian
from hsjax.samplers.interpolation import slerp
from hsjax.samplers.mixture import Mixture, gmm, projected_gmm
from hsjax.samplers.ncp import ncp
from hsjax.samplers.own import own
from hsjax.samplers.prior import prior
from hsjax.samplers.sphere import uniform_sphere
from hsjax.samplers.two_stage import two_stage, two_stage_gmm
from hsjax.samplers.vmf import VonMisesFisher, concentration, mean_resultant_length, vmf

__all__ = [
    "SAMPLERS",
    "AngleCopula",
    "Mixture",
    "Sampler",
    "VonMisesFisher",
    "angles",
    "codes",
    "concentration",
    "flow",
    "gaussian",
    "gmm",
    "mean_resultant_length",
    "ncp",
    "own",
    "prior",
    "projected_gaussian",
    "projected_gmm",
    "slerp",
    "two_stage",
    "two_stage_gmm",
    "uniform_sphere",
    "vmf",
]

SAMPLERS = {
    "own": own,
    "prior": prior,
    "uniform_sphere": uniform_sphere,
    "vmf": vmf,
    "gaussian": gaussian,
    "gmm": gmm,
    "projected_gaussian": projected_gaussian,
    "projected_gmm": projected_gmm,
    "angles": angles,
    "two_stage": two_stage,
    "two_stage_gmm": two_stage_gmm,
    "ncp": ncp,
    "flow": flow,
    "codes": codes,
}
