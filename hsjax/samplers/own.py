"""The method's own sampler: new latents come from the trained method's prior."""

from collections.abc import Callable

from jax import Array

from hsjax.samplers.base import Sampler


def fit(means, *, prior: Callable, **_) -> Callable:
    """The prior itself, (key, count) -> z [count, n]; the means are not used.

    A `jax.tree_util.Partial` passes through jit with its arrays; another callable has to be static.

    Raises:
      TypeError: no prior is given.

    Example:
      >>> import jax
      >>> parameters = fit(None, prior=lambda key, count: jax.random.normal(key, (count, 3)))
      >>> sample(parameters, jax.random.key(0), 5).shape
      (5, 3)
    """
    return prior


def sample(prior: Callable, key: Array, count: int) -> Array:
    """Samples of the prior, [count, n]."""
    return prior(key, count)


own = Sampler(fit, sample)
"""The trained method's own prior, given to `fit` by keyword; it has no log_prob."""
