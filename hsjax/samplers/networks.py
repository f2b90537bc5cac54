"""What samplers that are networks share: layers, training, and reports on the fit.

Their parameters are nested dictionaries of arrays, which can be saved. A tenth of the latents is
held out of training, and `train` returns the parameters with the lowest loss on them, so that a
long fit to few latents does not memorise them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hsjax.posteriors import Point
from hsjax.samplers import mixture
from hsjax.samplers.base import checked, float32
from hsjax.samplers.gaussian import gaussian

STEPS = 4000  # by default
BATCH = 200  # latents a step, if a sampler doesn't say otherwise
HELD_OUT = 2000  # latents at most
RATE = 1e-3  # of Adam at the beginning; it decays to 0 by a cosine
PATIENCE = 0.25  # share of the steps after which training ends unless the held-out loss has fallen

Loss = Callable[[dict, dict, Any, Array], Array]
"""(parameters, constants, posteriors of a batch, key) -> the mean over the batch."""


def lenient(function: Callable) -> Callable:
    """The function with rank and dtype promotion allowed, even if its caller forbids them."""
    return jax.numpy_rank_promotion("allow")(jax.numpy_dtype_promotion("standard")(function))


def silent(text: str) -> None:
    """Say nothing."""


def dense(key: Array, inputs: int, outputs: int, scale: float = 1.0) -> dict[str, Array]:
    """A layer of inputs × outputs weights, He-initialised, and no bias yet."""
    kernel = jax.random.normal(key, (inputs, outputs), jnp.float32) * (scale * (2 / inputs) ** 0.5)
    return {"kernel": kernel, "bias": jnp.zeros(outputs, jnp.float32)}


def apply(layer: dict[str, Array], x: Array) -> Array:
    """x [..., inputs] -> [..., outputs]."""
    return x @ layer["kernel"] + layer["bias"]


def mlp(key: Array, inputs: int, width: int, depth: int = 3) -> dict[str, dict[str, Array]]:
    """Hidden layers with ReLU: see `hidden`."""
    keys = jax.random.split(key, depth)
    return {str(i): dense(k, width if i else inputs, width) for i, k in enumerate(keys)}


def hidden(layers: dict[str, dict[str, Array]], x: Array) -> Array:
    """Outputs of the last hidden layer for x [..., inputs]: [..., width]."""
    for i in range(len(layers)):
        x = jax.nn.relu(apply(layers[str(i)], x))
    return x


class Job(NamedTuple):
    """What a sampler is trained on, and how."""

    name: str  # of the sampler
    posterior: Any  # on the device
    variables: dict  # of the method
    keys: Array  # five
    steps: int
    say: Callable[[str], None]

    def train(self, loss, parameters, constants, parts, key, **options):
        """`train` with the job's steps, messages and name."""
        how = {"steps": self.steps, "say": self.say, "name": self.name}
        return train(loss, parameters, constants, parts, key, **how, **options)


def fit_of(name: str, build: Callable[[Job], dict]) -> Callable[..., dict]:
    """The `fit` of a trained sampler, from the function that builds its parameters."""

    @lenient
    def fit(
        means,
        *,
        posterior=None,
        variables: dict | None = None,
        key: Array | None = None,
        fit_steps: int = STEPS,
        say: Callable[[str], None] = silent,
        **_,
    ) -> dict:
        """Train the sampler's network.

        Args:
          means: [count, n].
          posterior: of the same images; each step draws new z from it. The means if None.
          variables: of the method.
          key: for all random numbers.
          fit_steps: number of training steps.
          say: called with texts about the progress.

        Returns:
          Arrays by name; under "report" numbers about the fit.

        Raises:
          ValueError: fewer than 20 means, a NaN or more than 1e30 among them, posteriors that the
            sampler can't use, or a loss that is never finite.
        """
        means = checked(means)
        law = jax.device_put(Point(*float32(means)) if posterior is None else posterior)
        keys = jax.random.split(jax.random.key(0) if key is None else key, 5)
        return build(Job(name, law, variables or {}, keys, fit_steps, say))

    return fit


def draws(posterior: Any, key: Array) -> np.ndarray:
    """A sample of each posterior, float64 [count, n]."""
    return np.asarray(jax.jit(type(posterior).sample)(posterior, key), np.float64)


def standard(z: np.ndarray) -> dict[str, Array]:
    """Mean and deviation, or 1 if that is 0, of each coordinate of latents [count, n]."""
    deviation = z.std(axis=0)
    mean, deviation = float32(z.mean(axis=0), np.where(deviation > 0, deviation, 1.0))
    return {"mean": mean, "deviation": deviation}


def split(posterior: Any, key: Array) -> tuple[Any, Any]:
    """Posteriors to train on, and a random tenth that is held out.

    Raises:
      ValueError: fewer than 20.
    """
    if len(posterior.mean) < 20:
        raise ValueError(f"a network is trained on 20 of them at least, got {len(posterior.mean)}")
    order = np.asarray(jax.random.permutation(key, len(posterior.mean)))
    some = min(HELD_OUT, -(-len(order) // 10))
    parts = (np.sort(order[some:]), np.sort(order[:some]))
    return tuple(jax.tree.map(lambda x, part=part: x[part], posterior) for part in parts)  # type: ignore[return-value]


def train(
    loss: Loss,
    parameters: dict,
    constants: dict,
    parts: tuple[Any, Any],
    key: Array,
    *,
    steps: int,
    say: Callable[[str], None],
    name: str,
    batch: int = BATCH,
) -> tuple[dict, dict[str, float]]:
    """Minimise the loss with Adam; the parameters with the lowest held-out loss are returned.

    Args:
      loss: a module-level function, so that compiled programs are shared.
      parameters: initial values.
      constants: for the loss, which are not trained.
      parts: from `split`.
      key: of batches and noise.
      steps: number of training steps.
      say: called with texts about the progress.
      name: of the sampler.
      batch: latents a step.

    Returns:
      The parameters, and {"held_out": their held-out loss, "step": their training step}.

    Raises:
      ValueError: the loss has never been finite.
    """
    import optax  # the rest of the library doesn't need it

    trained, held_out = parts
    chunks = min(20, steps)
    state = optax.adam(RATE).init(parameters)
    best, lowest, when, step = parameters, math.inf, 0, 0
    for chunk in range(chunks):
        last = steps * (chunk + 1) // chunks
        if chunk % 4 == 0:
            so_far = f", held-out loss {lowest:.4g}" if step else ""
            say(f"fitting {name}: step {step} of {steps}{so_far}")
        parameters, state, found = _chunk(
            loss, batch, parameters, state, constants, trained, held_out, key, step, last, steps
        )
        step = last
        if float(found) < lowest:
            best, lowest, when = parameters, float(found), step
        if step - when > PATIENCE * steps:
            break
    if not math.isfinite(lowest):
        raise ValueError(f"the loss of {name} is not finite")
    return best, {"held_out": lowest, "step": when}


@functools.partial(jax.jit, static_argnums=(0, 1))
@lenient  # optax needs it
def _chunk(loss, batch, parameters, state, constants, trained, held_out, key, first, last, steps):
    """Steps `first` to `last`, and the held-out loss after them."""
    import optax

    count = len(trained.mean)

    def body(step, carry):
        parameters, state = carry
        batch_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
        indices = jax.random.randint(batch_key, (min(batch, count),), 0, count)
        some = jax.tree.map(lambda x: x[indices], trained)
        gradients = jax.grad(loss)(parameters, constants, some, noise_key)
        updates, state = optax.adam(1.0).update(gradients, state)
        rate = RATE * 0.5 * (1.0 + jnp.cos(jnp.pi * step / steps))
        return jax.tree.map(lambda x, u: x + rate * u, parameters, updates), state

    parameters, state = lax.fori_loop(first, last, body, (parameters, state))
    found = loss(parameters, constants, held_out, jax.random.fold_in(key, 2**31))
    return parameters, state, found


def gaussian_nats(parts: tuple[Any, Any], key: Array) -> dict[str, float]:
    """Mean log density of held-out draws under a Gaussian fitted to the others, if it has one."""
    fitted, held_out = (draws(part, jax.random.fold_in(key, i)) for i, part in enumerate(parts))
    found = float(jnp.mean(mixture.log_prob(gaussian.fit(fitted), *float32(held_out))))
    return {"gaussian_nats": found} if np.isfinite(found) else {}
