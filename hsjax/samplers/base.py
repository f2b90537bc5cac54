"""The interface of samplers, and what their fits share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Sampler(NamedTuple):
    """A distribution of latents: three module-level functions, without state.

    `fit(means, **context)` takes the encoder's means [count, n] and, by keyword, whatever else the
    caller has (`posterior`, `variables`, `key`, `prior`, `decode`, `encode`); it names what it uses
    and ends with `**_`. It runs once, on the host. `sample(parameters, key, count)` gives float32
    [count, n]. `log_prob(parameters, z)` takes z [count, n] and gives [count], in float32 or wider:
    the logarithm of a density per volume or, where samples lie on a sphere, per area of it. There
    only z's direction counts, and z = 0 has none. It is None where there is no density.

    If the parameters are a NamedTuple of arrays, `parameters` is its class, and they can be saved.
    Samplers with the same `fit` share the saved parameters.

    A trained sampler has in `learned` the name of what it fits. Its parameters are nested
    dictionaries of arrays, with numbers about the fit under "report", and can be saved. Its `fit`
    also takes `fit_steps` and `say(text)`.
    """

    fit: Callable
    sample: Callable
    log_prob: Callable | None = None
    learned: str = ""
    parameters: Callable[..., Any] | None = None


def float32(*arrays) -> tuple[Array, ...]:
    """The arrays on the device, in float32."""
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def checked(means) -> np.ndarray:
    """Means as float64, or a ValueError that says why nothing can be fitted to them."""
    means = np.asarray(means, np.float64)
    if means.ndim != 2 or min(means.shape) < 2:
        raise ValueError(
            "embeddings must be [count, n], both at least 2, for a sampler to be fitted; "
            f"got shape {means.shape}"
        )
    bad = int(np.sum(~(np.abs(means) <= 1e30).all(axis=1)))  # float32 holds up to 1e38
    if bad:
        raise ValueError(f"{bad} of {len(means)} embeddings hold a NaN or more than 1e30")
    return means


def directions(means: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit vectors [count, n], zero for a zero vector, and the mean radius."""
    radii = np.linalg.norm(means, axis=1)
    return means / np.where(radii > 0, radii, 1.0)[:, None], radii.mean()


def root(covariance: np.ndarray) -> np.ndarray:
    """F [..., n, n] with orthogonal columns and F Fᵀ = covariance, even if that is singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
