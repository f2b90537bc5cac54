"""New latents of a trained model, by any sampler. What is fitted is kept with the run."""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from hsjax import __version__, training
from hsjax.errors import UserError
from hsjax.files import read_npz, reason, remove, write_npz
from hsjax.inference import Inference
from hsjax.samplers import SAMPLERS, Sampler


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of an evaluation: of the posteriors' noise, and of its samples."""
    noise_key, sample_key = jax.random.split(training.random_key(seed))
    return noise_key, sample_key


def fit_name(name: str) -> str:
    """The name that a fit is kept under: that of the first sampler with the same `fit`."""
    fit = SAMPLERS[name].fit
    return next(other for other, sampler in SAMPLERS.items() if sampler.fit is fit)


def to_arrays(parameters: Any) -> dict[str, np.ndarray]:
    """The parameters of a sampler as arrays by name: nested names are joined by "/"."""
    tree = parameters._asdict() if hasattr(parameters, "_asdict") else parameters
    return {name: np.asarray(array) for name, array in flatten_dict(tree, sep="/").items()}


def from_arrays(sampler: Sampler, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `to_arrays`.

    Raises:
      TypeError: arrays of another sampler.
    """
    tree = unflatten_dict(dict(arrays), sep="/")
    return sampler.parameters(**tree) if sampler.parameters else tree


class Sampling:
    """Draws latents of a state by a sampler's name. Each sampler is fitted once.

    Args:
      config: of the run: its seed, latent dimension, and the fields under `sample`.
      inference: of the run.
      state: on every device of this process.
      posterior: gives the posteriors of the images that samplers are fitted to; it is called before
        the first fit.
      context: what else a fit may ask for by name: `encode`, `decode`, `say`.
      batch_size: latents that the method's own prior makes at a time.
      folder: where fits are kept for the next time; None for nowhere.
      fits: parameters of samplers that are fitted already, by `fit_name`.
    """

    def __init__(
        self,
        config: ConfigDict,
        inference: Inference,
        state: training.TrainState,
        posterior: Callable[[], Any],
        context: Mapping[str, Any],
        *,
        batch_size: int,
        folder: Path | None = None,
        fits: Mapping[str, Any] | None = None,
    ):
        self.reports: dict[str, dict[str, float]] = {}
        """Numbers about the fits of trained samplers, by `fit_name`."""
        self._config, self._state, self._folder = config, state, folder
        self._posterior = functools.cache(posterior)
        self._fits = dict(fits or {})

        def prior(key, count):  # batch by batch, since a method may decode them
            keys = jax.random.split(key, -(-count // batch_size))
            steps = config.sample.steps
            parts = [inference.prior(state, key, count=batch_size, steps=steps) for key in keys]
            return np.concatenate(parts)[:count]

        self._prior = prior
        self._context = {"say": lambda text: None, "prior": prior, **context}
        self._context |= {"variables": state.variables, "fit_steps": config.sample.fit_steps}

    def latents(self, name: str, key: jax.Array, count: int) -> np.ndarray:
        """New latents, float32 [count, n]; those of one sampler don't depend on the others.

        Raises:
          UserError: the sampler can't be fitted to these latents.
        """
        sampler, say = SAMPLERS[name], self._context["say"]
        if not sampler.learned:  # the others say how their fit goes
            say(f"{count} samples of {name}")
        parameters, draw = self.fit(name), sampler.sample
        if sampler.learned:
            say(f"{count} samples of {name}")
            draw = jax.jit(draw, static_argnums=2)
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return np.asarray(draw(parameters, key, count))

    def fit(self, name: str) -> Any:
        """The parameters of a sampler."""
        what = fit_name(name)
        if what not in self._fits:
            self._fits[what] = self._fitted(name, what)
        if SAMPLERS[name].learned:
            report = self._fits[what]["report"]
            self.reports[what] = {key: float(value) for key, value in report.items()}
        return self._fits[what]

    def _fitted(self, name: str, what: str) -> Any:
        """The parameters from the folder, or new ones, which are put there."""
        sampler, n = SAMPLERS[name], self._config.model.latent_dim
        if what == "own":
            return self._prior
        if what in ("prior", "uniform_sphere"):  # which look at n alone
            return sampler.fit(np.zeros((2, n), np.float32))
        of_fit = jax.random.fold_in(keys(self._config.seed)[1], zlib.crc32(what.encode()))
        posterior, key = self._posterior(), jax.random.fold_in(of_fit, 0)
        path = None
        if self._folder and (sampler.learned or sampler.parameters):
            step = int(self._state.step)
            path = self._folder / f"{step}-{what}-{self._digest(posterior, key)}.npz"
            if path.exists():
                try:
                    return from_arrays(sampler, read_npz(path))
                except (TypeError, UserError):
                    logging.warning("%s is damaged: fitting %s again", path, what)
        try:
            parameters = sampler.fit(posterior.mean, posterior=posterior, key=key, **self._context)
        except ValueError as error:
            raise UserError(f"{name} can't be fitted to these latents: {error}") from error
        if path:
            try:
                for other in path.parent.glob("*.npz"):
                    if not other.name.startswith(f"{step}-"):  # of an earlier step of the run
                        remove(other)
                write_npz(path, to_arrays(parameters))
            except OSError as error:  # read-only or full
                logging.warning(
                    "the fit could not be kept (%s): the next one fits again", reason(error)
                )
        return parameters

    def _digest(self, posterior: Any, key: jax.Array) -> str:
        """A hash of all that a fit depends on."""
        steps = self._config.sample.fit_steps
        digest = hashlib.sha256(json.dumps([__version__, steps]).encode())
        tree = posterior, self._state.variables, jax.random.key_data(key)
        for leaf in jax.tree.leaves(tree):
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()[:16]
