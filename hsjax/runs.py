"""A trained model, to encode, decode, sample and interpolate without its training data."""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hsjax import devices, exporting, inference, published, training
from hsjax.checkpoints import Checkpoints
from hsjax.config import of_evaluation, read_record
from hsjax.errors import UserError
from hsjax.files import read_npz, workdir_path
from hsjax.logs import best_step
from hsjax.methods import METHODS
from hsjax.models import VAE, Networks
from hsjax.samplers import SAMPLERS, slerp
from hsjax.sampling import Sampling, fit_name, keys

CHUNK = 10_000  # samples that are drawn at a time


class _Parts(NamedTuple):
    """What a model is made of, wherever it was read."""

    config: ConfigDict
    setup: training.Setup
    state: training.TrainState
    metrics: dict[str, Any]
    data: dict[str, Any]  # as data.json
    fits: Mapping[str, Any]  # parameters of samplers, by sampling.fit_name
    folder: Path | None  # of kept fits
    posteriors: Path | None  # file with the posteriors of both splits


class Run:
    """A trained model, as `hsjax.load` returns it.

    Images are float32 [count, height, width, channels] in [0, 1]; input images may also be uint8.
    Any number of them is encoded or decoded, in batches of the run's batch size. On the machine
    that judged the run, with as many devices, all numbers equal the evaluation's bit for bit.
    """

    def __init__(self, path: Path, parts: _Parts):
        self.path = path
        """Where it was loaded from."""
        self.config: ConfigDict = parts.config
        """Every field, as in configs/default.py."""
        self.metrics: dict[str, Any] = parts.metrics
        """The numbers of its last evaluation, as in metrics.json; empty if there was none."""
        self.data: dict[str, Any] = parts.data
        """Shapes and checksums of the images it was trained and judged on, as in data.json."""
        self.shape: tuple[int, int, int] = parts.setup.shape
        """Height, width and channels of an image."""
        self.setup, self.state = parts.setup, devices.replicate(parts.state, jax.local_devices())
        self._objective = training.build_objective(self.config)
        wanted = self.config.evaluate
        self._inference = inference.build_inference(
            self.setup, self._objective, wanted.latent_scale, wanted.batch_norm
        )
        self._batch_size = inference.whole_batch(self.config.train.batch_size)
        self._posteriors, self._fits = parts.posteriors, parts.fits
        self.sampling = Sampling(
            self.config,
            self._inference,
            self.state,
            lambda: self.posterior(self.config.sample.fit_split),
            {"encode": self.encode, "decode": self._as_saved},
            batch_size=self.config.train.batch_size,
            folder=parts.folder,
            fits=parts.fits,
        )

    def __repr__(self) -> str:
        n, method = self.config.model.latent_dim, self.config.method.name
        return (
            f"Run({str(self.path)!r}: {method}, n = {n}, images {self.shape}, epoch {self.epoch})"
        )

    @property
    def latent_dim(self) -> int:
        """n, the number of latent coordinates."""
        return self.config.model.latent_dim

    @property
    def epoch(self) -> int:
        """Epochs that the model was trained for."""
        return int(self.state.step) // self.setup.steps

    @functools.cached_property
    def model(self) -> VAE:
        """The Flax NNX module with its arrays: `encoder` and `decoder`, or `encode` and `decode`.

        Its `encode` gives the raw outputs, [batch, outputs], not a posterior.
        """
        return self.setup.model(self._objective, self.state).networks

    @property
    def is_exported(self) -> bool:
        """Whether there are no embeddings of the run's own images."""
        return self._posteriors is None

    def encode(self, images) -> Any:
        """The posteriors of images, as NumPy arrays; their `mean` is [count, n].

        Args:
          images: [count, height, width, channels], uint8 or floats in [0, 1]; the axis of a single
            channel may be missing.

        Raises:
          UserError: images of another shape, dtype or range.
        """
        images = self._images(images)
        return inference.embed(self._inference, self.state, images, self._batch_size)

    def decode(self, z) -> np.ndarray:
        """Images of latents z [count, n].

        A model with `model.project` rescales them to ‖z‖ = √n first.

        Raises:
          UserError: latents of another shape, or not finite.
        """
        return np.concatenate(list(self._decoded(self._latents(z))))

    def reconstruct(self, images) -> np.ndarray:
        """Reconstructions of images, decoded from their posterior means; see `encode`."""
        return self.decode(self.encode(images).mean)

    def sample(self, count: int, sampler: str | None = None, seed: int = 0) -> np.ndarray:
        """New images, [count, height, width, channels].

        Args:
          count: at least 1.
          sampler: a name in `hsjax.samplers.SAMPLERS`; the config's sample.sampler if None. It is
            fitted to the embeddings of the run, unless that has been done before.
          seed: of the random numbers. With the config's seed and the evaluation's count, up to
            10,000, these are the samples that were judged.

        Raises:
          UserError: another count or name, or a sampler that can't be fitted.
        """
        return np.concatenate(list(self.sample_batches(count, sampler, seed)))

    def sample_batches(
        self, count: int, sampler: str | None = None, seed: int = 0
    ) -> Iterator[np.ndarray]:
        """The images of `sample`, batch by batch: for more of them than fit in memory."""
        for start in range(0, _whole("count", count), CHUNK):
            z = self.sample_latents(min(CHUNK, count - start), sampler, seed, start // CHUNK)
            yield from self._decoded(z)

    def sample_latents(
        self, count: int, sampler: str | None = None, seed: int = 0, part: int = 0
    ) -> np.ndarray:
        """The latents of `sample`, float32 [count, n]; another `part` gives others for one seed."""
        name = sampler or self.config.sample.sampler
        if name not in SAMPLERS:
            raise UserError(f"{name!r} is no sampler: choose one of {', '.join(SAMPLERS)}")
        key = keys(_whole("seed", seed, 0))[1]
        key = jax.random.fold_in(key, part) if part else key
        return self.sampling.latents(name, key, _whole("count", count))

    def interpolate(self, a, b, steps: int = 10) -> np.ndarray:
        """Images on the path from a to b: [count, steps, height, width, channels].

        The path is that of `hsjax.samplers.slerp`, along the sphere, both ends included.

        Args:
          a, b: latents [count, n] or [n], or images as `encode` takes them, whose posterior means
            are used.
          steps: at least 2.

        Raises:
          UserError: other shapes, a and b of different counts, or fewer steps.
        """
        first, second = self._ends(a), self._ends(b)
        if len(first) != len(second):
            raise UserError(f"a holds {len(first)} ends and b {len(second)}: give as many")
        fractions = jnp.linspace(0.0, 1.0, _whole("steps", steps, 2), dtype=jnp.float32)
        z = np.concatenate([slerp(*pair, fractions) for pair in zip(first, second, strict=True)])
        images = self.decode(z)
        return images.reshape(len(first), steps, *images.shape[1:])

    def posterior(self, split: str = "train") -> Any:
        """The posteriors of the run's own images, as its last evaluation saved them.

        Args:
          split: "train" or "test".

        Raises:
          UserError: they are missing, or are of another step or BatchNorm mode.
        """
        if self._posteriors is None:
            raise UserError(
                f"{self.path} has no embeddings of training images, which stay with the run: "
                f"its samplers are {', '.join(self._samplers())}"
            )
        if not self._posteriors.exists():
            raise UserError(f"{self.path} was never judged: judge it with --mode=evaluate")
        arrays = read_npz(self._posteriors)
        wanted = int(self.state.step), self.config.evaluate.batch_norm
        if (int(arrays["step"]), str(arrays["batch_norm"])) != wanted:
            raise UserError(
                f"{self._posteriors} is of step {arrays['step']} and BatchNorm "
                f"{arrays['batch_norm']}, the model of step {wanted[0]} and {wanted[1]}: judge it "
                "again with --mode=evaluate"
            )
        image = jax.ShapeDtypeStruct((self._batch_size, *self.shape), np.uint8)
        like = jax.eval_shape(self._inference.encode, self.state, image)
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        names = [f"{split}{jax.tree_util.keystr(path)}" for path, _ in leaves]
        return jax.tree.unflatten(structure, [arrays[name] for name in names])

    def _samplers(self) -> list[str]:
        """Samplers that can be used without embeddings."""
        ready = {"own", "prior", "uniform_sphere", *self._fits}
        return [name for name in SAMPLERS if fit_name(name) in ready]

    def _decoded(self, z) -> Iterator[np.ndarray]:
        return inference.decoded(self._inference, self.state, z, self._batch_size)

    def _as_saved(self, z) -> np.ndarray:
        return inference.decode(self._inference, self.state, z, self._batch_size)

    def _ends(self, x) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim == 1:
            x = x[None]
        return self._latents(x) if x.ndim == 2 else self.encode(x).mean

    def _latents(self, z) -> np.ndarray:
        z = np.asarray(z, np.float32)
        if z.ndim != 2 or z.shape[1] != self.latent_dim or not len(z):
            raise UserError(f"latents have shape {z.shape}: make it [count, {self.latent_dim}]")
        if not np.isfinite(z).all():
            raise UserError("latents hold a NaN or an infinite number")
        return z

    def _images(self, images) -> np.ndarray:
        images = np.asarray(images)
        shape = list(self.shape)
        if images.ndim == 3 and shape[2] == 1:
            images = images[..., None]
        if list(images.shape[1:]) != shape or not len(images):
            raise UserError(
                f"images have shape {images.shape}: make it [count, {', '.join(map(str, shape))}]"
            )
        if images.dtype == np.uint8:
            return images
        if not np.issubdtype(images.dtype, np.floating):
            raise UserError(f"images are {images.dtype}: make them uint8, or floats in [0, 1]")
        if not ((images >= 0) & (images <= 1)).all():
            raise UserError("images hold numbers outside of [0, 1]: scale them, or make them uint8")
        return images.astype(np.float32)


def load(path: str | os.PathLike, *, networks: Networks | None = None) -> Run:
    """Load a trained model: a run's workdir, a folder of `hsjax export` or the authors' checkpoint.

    The training data isn't needed. Nothing in the path is executed or changed. From a workdir the
    newest good checkpoint is loaded, or the one that its evaluate.checkpoint chooses. A file must
    be one that `hsjax.published.read` can read.

    Args:
      path: of the folder or file.
      networks: what the run was trained with, if they were your own.

    Raises:
      UserError: it is no such folder or file, or something in it is damaged.
    """
    given, path = Path(path), workdir_path(path)
    if path.is_file():
        return Run(given, _published(path))
    if (path / exporting.CARD).is_file():
        return Run(given, _exported(path, networks))
    if not (path / "checkpoints").is_dir() or read_record(path / "config.json") is None:
        raise UserError(
            f"{path} holds no trained model: give the workdir of a run, or an exported folder"
        )
    return Run(given, _trained(path, networks))


def _trained(path: Path, networks) -> _Parts:
    """The parts of a workdir's model."""
    config = of_evaluation(path, {})
    data = read_record(path / "data.json") or {}
    try:
        count, *shape = data["train_images"]["shape"]
        count = data.get("training_images") or count - round(config.data.validation_share * count)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path / 'data.json'} doesn't tell the shape of the images: repeat the command that "
            "trained the run, which writes it"
        ) from error
    setup = training.build(
        training.static(config), METHODS[config.method.name], tuple(shape), count, networks
    )
    objective = training.build_objective(config)
    like = setup.like(objective)
    with Checkpoints(path / "checkpoints", config.train.checkpoints_kept) as checkpoints:
        state = restored(config, path, checkpoints, like).averaged
    metrics = read_record(path / "metrics.json") or {}
    posteriors = path / "posteriors.npz"
    return _Parts(config, setup, state, metrics, data, {}, path / "fits", posteriors)


def restored(
    config: ConfigDict, path: Path, checkpoints: Checkpoints, like: training.TrainState
) -> training.TrainState:
    """The state of a workdir that evaluate.checkpoint asks for.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    step, kept = None, config.train.keep_best
    if config.evaluate.checkpoint == "best":
        step = None if kept == "none" else best_step(path, kept, checkpoints.steps())
        if step is None:
            raise UserError(
                f"{path} keeps no best checkpoint: train it with train.keep_best, or leave "
                "evaluate.checkpoint at newest"
            )
    state = checkpoints.restore(like, move=False, only=step)
    if state is None and step is not None:
        raise UserError(
            f"{path}: the best checkpoint (step {step}) is damaged: leave evaluate.checkpoint at "
            "newest"
        )
    if state is None:
        raise UserError(f"{path} has no good checkpoint: train it first with --mode=train")
    return state


def _exported(path: Path, networks) -> _Parts:
    """The parts of a model that `export` wrote."""
    exported = exporting.read(path)
    card, config = exported.card, exported.config
    setup = training.build(
        training.static(config),
        METHODS[config.method.name],
        tuple(card["shape"]),
        card["steps_per_epoch"] * config.train.batch_size,
        networks,
    )
    objective = training.build_objective(config)
    like = setup.like(objective)
    trees = {"params": like.params, "batch_stats": like.batch_stats}
    state = _finished(card["step"], **exporting.fill(trees, exported, path))
    return _Parts(config, setup, state, card["numbers"], card["data"], exported.fits, None, None)


def _published(path: Path) -> _Parts:
    """The parts of an authors' checkpoint, which lacks the number of steps per epoch: 1 here."""
    config, params, batch_stats, epoch, _, shape = published.read(path)
    setup = training.build(
        training.static(config), METHODS[config.method.name], shape, config.train.batch_size
    )
    state = _finished(epoch + 1, params, batch_stats)
    return _Parts(config, setup, state, {}, {}, {}, None, None)


def _finished(step: int, params: dict, batch_stats: dict) -> training.TrainState:
    """A state that is not trained any further."""
    return training.TrainState(
        step=jnp.int32(step),
        key=jnp.zeros(2, jnp.uint32),
        params=params,
        batch_stats=batch_stats,
        optimizer=None,
        beta_scale=jnp.float32(1.0),
        history={},
    )


def to_arrays(posteriors: dict[str, Any], step: int, config: ConfigDict) -> dict[str, np.ndarray]:
    """What posteriors.npz holds.

    Args:
      posteriors: of the images of the splits "train" and "test".
      step: of the model that encoded them.
      config: of the evaluation.
    """
    of = {"step": step, "batch_norm": config.evaluate.batch_norm}
    arrays = {name: np.asarray(value) for name, value in of.items()}
    for split, posterior in posteriors.items():
        leaves, _ = jax.tree_util.tree_flatten_with_path(posterior)
        arrays |= {f"{split}{jax.tree_util.keystr(p)}": np.asarray(leaf) for p, leaf in leaves}
    return arrays


def _whole(name: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is {value!r}: make it a whole number of at least {least}")
    return int(value)
