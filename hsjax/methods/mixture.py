"""A VAE whose prior is a learned mixture of Gaussians.

    p(z) = Σ_k w_k N(z; μ_k, diag σ_k²)

Weights, means and variances are learned with the networks, as in the comparison of Tomczak and
Welling, 2018 (https://arxiv.org/abs/1705.07120).
"""

import dataclasses
import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr, logsumexp

from hsjax import posteriors
from hsjax.methods.base import Bounds, Method, outputs_of_gaussian

Components = Annotated[int, Bounds(1, 100_000)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Choices of the method."""

    components: int = dataclasses.field(metadata={"static": True})


def hyper(n: int, *, components: Components = 100) -> Hyper:
    """Choices of the method.

    Args:
      n: latent dimension.
      components: Gaussians in the prior.
    """
    return Hyper(components)


class Mixture(NamedTuple):
    """Gaussians with diagonal covariances, by weight."""

    log_weights: Array  # [components]; the weights sum to 1
    means: Array  # [components, n]
    log_variances: Array  # [components, n]

    def log_joint(self, z: Array) -> Array:
        """log w_k + log N(z; μ_k, diag σ_k²), for z [count, n]: [count, components].

        Computed from differences: matrix products would lose 5e-3 nats in float32.
        """
        return self.log_weights + jax.vmap(log_normal, (None, 0, 0), 1)(
            z, self.means, self.log_variances
        )

    def sample(self, key: Array, count: int) -> Array:
        """float32 [count, n]."""
        choice_key, noise_key = jax.random.split(key)
        k = jax.random.categorical(choice_key, self.log_weights, shape=(count,))
        return posteriors.Gaussian(self.means[k], self.log_variances[k]).sample(noise_key)


def log_normal(z: Array, mean: Array, log_variance: Array) -> Array:
    """log N(z; mean, diag exp(log_variance)), of z [..., n]: [...]."""
    squares = (z - mean) ** 2 * jnp.exp(-log_variance)
    return -0.5 * jnp.sum(squares + log_variance + math.log(2 * math.pi), axis=-1)


def bounded(log_variance: Array) -> Array:
    """The log variance, bounded smoothly to between -6 and 2 (σ from 0.05 to 2.7).

    So no gradient is lost. Tomczak and Welling's code clips it at the same bounds.
    """
    return 4.0 * jnp.tanh(0.25 * (log_variance + 2.0)) - 2.0


def posterior(outputs: Array, **_) -> posteriors.Gaussian:
    """The Gaussian of 2n outputs [batch, 2n], its log variances bounded."""
    mean, log_variance = jnp.split(outputs, 2, axis=-1)
    return posteriors.Gaussian(mean, bounded(log_variance))


def kld(prior: Mixture, posterior: posteriors.Gaussian, z: Array) -> dict:
    """log q(z|x) - log p(z), mean over the batch: the KLD by one sample of each posterior, in nats.

    Two more terms show whether the components are used: `effective_components`, exp of the mutual
    information of component and latent, is 1 if one component has all latents or all components are
    alike; `responsibility`, the mean of each latent's largest, is 1 if each latent belongs to one
    component alone.
    """
    joint = prior.log_joint(z)
    found = logsumexp(joint, axis=1)
    responsibilities = jnp.exp(joint - found[:, None])
    within = jnp.mean(jnp.sum(entr(responsibilities), axis=1))
    information = jnp.sum(entr(jnp.mean(responsibilities, axis=0))) - within
    return {
        "regulariser": jnp.mean(log_normal(z, *posterior) - found),
        "effective_components": jnp.exp(information),
        "responsibility": jnp.mean(jnp.max(responsibilities, axis=1)),
    }


def notes(hyper, terms: dict[str, float]) -> list[str]:
    """Whether components have died or are alike, and whether latents are split among them."""
    found, used = [], terms["effective_components"]
    if used < 0.5 * hyper.components:
        found.append(f"the prior's {hyper.components} components count like {used:.1f}")
    if used > 1.5 and terms["responsibility"] > 0.99:
        found.append(
            "each latent belongs to one component of the prior alone (responsibilities are one-hot)"
        )
    return found


def variables(key: Array, n: int, hyper: Hyper, images) -> dict:
    """Equal weights, small means and variances near 1: larger means would differ by n nats."""
    shape = hyper.components, n
    return {
        "logits": jnp.zeros(hyper.components, jnp.float32),
        "means": 0.1 * jax.random.normal(key, shape, jnp.float32),
        "log_variances": jnp.zeros(shape, jnp.float32),
    }


def mixture_of(variables: dict) -> Mixture:
    """The prior that these variables define."""
    log_weights = jax.nn.log_softmax(variables["logits"])
    return Mixture(log_weights, variables["means"], bounded(variables["log_variances"]))


def regulariser(numbers: Hyper, posterior: posteriors.Gaussian, z, *, variables, **_) -> dict:
    """`kld` from the mixture."""
    return kld(mixture_of(variables), posterior, z)


def prior(key: Array, count: int, n: int, *, variables, **_) -> Array:
    """New latents from the mixture, [count, n]: no fit is needed."""
    return mixture_of(variables).sample(key, count)


mixture = Method(
    head=outputs_of_gaussian,
    hyper=hyper,
    posterior=posterior,
    regulariser=regulariser,
    prior=prior,
    variables=variables,
    notes=notes,
)
