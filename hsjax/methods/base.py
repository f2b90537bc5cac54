"""The interface of latent-space methods, and what most of them share."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hsjax import coordinates, posteriors


def no_variables(key: Array, n: int, hyper: Any, images: Array) -> dict:
    """Nothing is learned, or kept, besides the networks."""
    return {}


def no_notes(hyper: Any, terms: dict[str, float]) -> list[str]:
    """Nothing that a reader must be told."""
    return []


def no_check(hyper: Any, labels: Any, batch_size: int) -> list[str]:
    """Any data will do."""
    return []


def normal(key: Array, count: int, n: int, **_) -> Array:
    """New latents from N(0, I), [count, n]."""
    return jax.random.normal(key, (count, n), jnp.float32)


def uniform(key: Array, count: int, n: int, **_) -> Array:
    """New latents, uniform on the sphere of radius √n, [count, n]."""
    return coordinates.project(normal(key, count, n))


def point_on_sphere(outputs: Array, **_) -> posteriors.Point:
    """The point of the sphere of radius √n in the direction of the outputs, [batch, n]."""
    return posteriors.Point(coordinates.project(outputs))


class Method(NamedTuple):
    """A latent-space method: its posterior, its regulariser, and where new latents come from.

    All fields except `project` are module-level pure functions, so a method can be a static
    argument of jit. Its numbers, `hyper`, are passed separately as a pytree, so runs that differ
    only in numbers share a program.

    Some functions get a context by keyword. They name what they use of it and end with `**_`:

    * `variables`: the present values of what `variables` and `statistics` made, by name;
    * `encode(images, train=False)` -> posterior of images in [0, 1], and `decode(z, train=False)`
      -> images; BatchNorm takes its running statistics unless `train`;
    * for `regulariser` and `update`: `images` [batch, height, width, channels] in [0, 1]; their
      `reconstructions` from z; `labels` int32 [batch], None for a set without; `params`, the
      networks' parameters: a tree of arrays with "encoder" and "decoder"; `sample_key`, which z was
      sampled with, and `key`, another random key; and, in training, `epoch`, counted from 1;
    * for `prior` only: `steps`, the config's sample.steps.
    """

    head: Callable[[int], int]
    """``n`` -> number of encoder outputs for an image."""

    hyper: Callable[..., Any]
    """``(n, **config.method)`` -> pytree. Its signature is the schema of the config: keyword
    arguments with an annotation and a default each. A ValueError begins with a field's name.
    """

    posterior: Callable[..., Any]
    """``(outputs [batch, head], hyper=..., variables=...)`` -> posterior: `hsjax.posteriors`."""

    regulariser: Callable[..., dict[str, Array]]
    """``(hyper, posterior, z, **context)`` -> scalars: "regulariser", which β multiplies, and its
    parts by name if it has any. z [batch, n] is a sample of the posterior.
    """

    prior: Callable[..., Array] = normal
    """``(key, count, n, hyper=..., **context)`` -> new latents [count, n]: the sampler `own`."""

    variables: Callable[..., dict] = no_variables
    """``(key, n, hyper, images)`` -> what is learned besides the networks, a tree of arrays by
    name; {} if nothing is. `images` [count, height, width, channels] in [0, 1] are up to 1,000 of
    the training images.
    """

    statistics: Callable[..., dict] = no_variables
    """The same for what no gradient changes: it is kept with BatchNorm's statistics."""

    update: Callable[..., dict] = no_variables
    """``(hyper, posterior, z, **context)`` -> the statistics after a training step, if there are
    any. The context is the regulariser's.
    """

    notes: Callable[[Any, dict[str, float]], list[str]] = no_notes
    """``(hyper, terms)`` -> lines for the report on a trained run, based on its regulariser's
    terms: for example that a part of the method is no longer used.
    """

    check: Callable[..., list[str]] = no_check
    """``(hyper, labels of the training images or None, batch_size)`` -> lines that a user should
    read before training. A ValueError, which begins with a field's name, refuses the data.
    """

    project: bool = False
    """Whether the decoder gets √n z / ‖z‖, whatever model.project says."""


class Bounds(NamedTuple):
    """The smallest and the largest value of a number in a config."""

    least: float
    most: float = 1e30


NonNegative = Annotated[float, Bounds(0.0)]
Positive = Annotated[float, Bounds(1e-30)]  # in float32, 1e-300 would be 0


def outputs_of_gaussian(n: int) -> int:
    """2n: μ and log σ² of each coordinate."""
    return 2 * n


def outputs_of_point(n: int) -> int:
    """n: the latent itself."""
    return n
