"""Training as pure functions: (state, batch) -> state, and an epoch of such steps."""

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax
from jax.typing import ArrayLike
from ml_collections import ConfigDict, FrozenConfigDict

from hsjax import batches, devices, losses
from hsjax.errors import UserError
from hsjax.models import VAE, Latent

_KEYS = "threefry2x32"  # whatever JAX's default is, the same seed gives the same numbers


class TrainState(NamedTuple):
    """All that a run is, between two steps: a checkpoint holds this and nothing else."""

    step: Array  # int32, steps done
    key: Array  # uint32 [2], never changes: random numbers come from it and the step or epoch
    params: dict
    batch_stats: dict
    optimizer: optax.OptState
    beta_scale: Array  # of loss.relative_beta: MSE / regulariser of the first epoch; else 1
    history: dict[str, Array]  # [steps per epoch] each: the terms of the present epoch's steps


class Objective(NamedTuple):
    """The numbers of the loss, as a pytree: runs that differ only in them share one program."""

    beta: Array
    annealing_epochs: Array
    spec: losses.Spec | None


class Experiment(NamedTuple):
    """What is fixed during a run: the functions of a config on images of one shape.

    Hashable, and the same for all runs whose `static` configs are, so that they share programs.
    """

    config: FrozenConfigDict  # the static fields
    shape: tuple[int, int, int]  # of an image as it is in the data: height, width, channels
    steps: int  # per epoch
    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[ArrayLike], ArrayLike]  # of the step
    initial: Callable[[int], TrainState]  # of the seed

    def model(self, params: dict, batch_stats: dict) -> VAE:
        """The VAE with these arrays."""
        return nnx.merge(self.graph, params, batch_stats)

    def pad(self, images: Array) -> Array:
        """Images of the data -> images whose sides the model can halve."""
        return batches.pad(images, 2 ** len(self.config.model.stages))

    def crop(self, images: Array) -> Array:
        """The inverse of `pad`."""
        return batches.crop(images, *self.shape[:2])


_LOSS_CHOICES = ("kind", "annealing", "relative_beta", "spec")


def static(config: ConfigDict) -> FrozenConfigDict:
    """The fields that shape a run's programs; seed, data and the loss's numbers are not in it."""
    return FrozenConfigDict(
        {
            "data": {"flip": config.data.flip},
            "model": config.model.to_dict(),
            "loss": {name: config.loss[name] for name in _LOSS_CHOICES},
            "train": config.train.to_dict(),
        }
    )


def random_key(seed: int) -> Array:
    """The key of a run's random numbers, of one kind whatever JAX_DEFAULT_PRNG_IMPL says."""
    return jax.random.key(seed, impl=_KEYS)


def create(config: ConfigDict, shape: tuple[int, int, int], count: int):
    """An experiment and its initial state.

    Args:
      config: see configs/default.py.
      shape: (height, width, channels) of the images.
      count: number of training images.

    Returns:
      (Experiment, TrainState).

    Raises:
      UserError: a batch larger than the data, or more steps than are counted.
    """
    experiment = build(static(config), shape, count)
    return experiment, experiment.initial(config.seed)


def build(config: FrozenConfigDict, shape: tuple[int, int, int], count: int) -> Experiment:
    """The experiment of the `static` fields of a config; the rest is as in `create`."""
    steps = batches.steps_per_epoch(count, config.train.batch_size)
    padded = batches.pad(jnp.zeros((1, *shape), jnp.uint8), 2 ** len(config.model.stages)).shape[1:]

    train = config.train
    if train.epochs * steps >= 2**31:  # the step is int32
        raise UserError(
            f"train.epochs={train.epochs}: an epoch has {steps} steps, "
            f"so make it at most {(2**31 - 1) // steps}"
        )
    decays = {e * steps: train.decay_factor for e in train.decay_epochs if e < train.epochs}
    learning_rate = optax.piecewise_constant_schedule(train.learning_rate, decays)
    clip = train.gradient_clip
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adam(learning_rate, eps=train.adam_eps),
    )
    names = ["loss", "mse", "kl", "beta", "learning_rate"]
    names += losses.SphericalTerms._fields if config.loss.kind == "spherical" else ()

    def model(key):
        vae = VAE(
            padded,
            config.model.latent_dim,
            tuple(config.model.stages),
            jnp.dtype(config.model.dtype),
            project=config.model.project,
            initialisation=config.model.initialisation,
            rngs=nnx.Rngs(key),
        )
        return nnx.split(vae, nnx.Param, nnx.BatchStat)

    # One program instead of a hundred, run once: compiling it in full would take longer than
    # compiling a training step. The numbers are the same to the bit.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def initial(key):
        params_key, run_key = jax.random.split(key)
        _, params, batch_stats = model(params_key)
        params, batch_stats = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
        return TrainState(
            step=jnp.int32(0),
            key=jax.random.key_data(run_key),
            params=params,
            batch_stats=batch_stats,
            optimizer=optimizer.init(params),
            beta_scale=jnp.float32(1.0),
            history={name: jnp.zeros(steps, jnp.float32) for name in names},
        )

    return Experiment(
        config=config,
        shape=tuple(shape),  # type: ignore[arg-type]
        steps=steps,
        graph=jax.eval_shape(model, random_key(0))[0],
        optimizer=optimizer,
        learning_rate=learning_rate,
        initial=lambda seed: initial(random_key(seed)),
    )


def objective(config: ConfigDict) -> Objective:
    """The numbers of a config's loss."""
    loss, n = config.loss, config.model.latent_dim

    @jax.jit
    def build():
        if loss.kind != "spherical":
            spec = None
        elif loss.spec == "published":
            spec = losses.published_spec(
                n,
                loss.compression,
                std_radius=loss.std_radius,
                std_angle_gain=loss.std_angle_gain,
            )
        else:
            spec = losses.paper_spec(
                n,
                compression=loss.compression,
                mean_target=loss.mean_target,
                spread_target=loss.spread_target,
                compressed_angles=loss.compressed_angles or None,
                angle_gain=loss.angle_gain,
                radius_gain=loss.radius_gain,
                eps=loss.eps,
                variance_eps=loss.variance_eps,
            )
        tree = Objective(loss.beta, loss.annealing_epochs, spec)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    return build()


def regulariser(
    loss: FrozenConfigDict, latent: Latent, spec: losses.Spec | None
) -> dict[str, Array]:
    """The regulariser "kl", and its parts by name where it has any: scalars.

    Args:
      loss: the `static` fields of the loss.
      latent: of a batch.
      spec: of `objective`.
    """
    if loss.kind == "standard":
        # The authors' code has the mean over the n coordinates where (1) has the sum.
        n = latent.mean.shape[-1] if loss.spec == "published" else 1
        return {"kl": losses.gaussian_kl(*latent) / n}
    if loss.kind == "cartesian":
        return {"kl": losses.cartesian_kl(latent.mean, latent.std)}
    assert spec is not None  # objective() gives one to the spherical kind
    terms = losses.spherical_kl(latent.mean, latent.std, spec)
    return {"kl": losses.total(terms, spec), **terms._asdict()}


@jax.numpy_dtype_promotion("standard")  # which optax needs
def train_step(
    experiment: Experiment, objective: Objective, state: TrainState, images: Array
) -> TrainState:
    """One step of Adam on MSE + β regulariser, equations (2) and (6).

    Args:
      experiment: of this run (static).
      objective: of this run.
      state: before the step.
      images: uint8 [batch, height, width, channels].

    Returns:
      The state after it, with the terms of this step in its history.
    """
    loss_config = experiment.config.loss
    step_key, _ = jax.random.split(jax.random.wrap_key_data(state.key, impl=_KEYS))
    flip_key, noise_key = jax.random.split(jax.random.fold_in(step_key, state.step))
    images = batches.prepare(images, flip_key, flip=experiment.config.data.flip)
    epoch = state.step // experiment.steps + 1
    beta = objective.beta * state.beta_scale
    if loss_config.relative_beta:  # there is nothing yet that β could be relative to
        beta = jnp.where(epoch == 1, 1.0, beta)
    beta *= losses.annealing(epoch, form=loss_config.annealing, length=objective.annealing_epochs)

    def loss_of(params):
        model = experiment.model(params, state.batch_stats)
        latent, output = model(experiment.pad(images), noise_key, train=True)
        mse = losses.squared_error(images, experiment.crop(output))
        parts = regulariser(loss_config, latent, objective.spec)
        loss = mse + beta * parts["kl"]
        batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return loss, (batch_stats, {"loss": loss, "mse": mse, **parts})

    gradients, (batch_stats, terms) = jax.grad(loss_of, has_aux=True)(state.params)
    updates, optimizer = experiment.optimizer.update(gradients, state.optimizer, state.params)
    terms |= {"beta": beta, "learning_rate": experiment.learning_rate(state.step)}
    index = state.step % experiment.steps
    return state._replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        optimizer=optimizer,
        history={name: row.at[index].set(terms[name]) for name, row in state.history.items()},
    )


class Programs(NamedTuple):
    """The compiled programs of a run; each donates the state it is given."""

    order: Callable  # state -> int32 [steps, batch]: which images make up the epoch's batches
    step: Callable  # (objective, state, images, order) -> state after the next batch of the epoch
    epoch: Callable  # (objective, state, images, order[k:]) -> state after all these batches
    batch: Callable  # (objective, state, batch) -> state after a batch that comes from the host


def programs(experiment: Experiment, count: int) -> Programs:
    """Jit the parts of an epoch over `count` training images.

    The devices share each batch; other arguments and all results are whole on each of them.
    """
    batch_size = experiment.config.train.batch_size
    sharding = devices.replicated()
    jit = functools.partial(jax.jit, in_shardings=sharding, out_shardings=sharding)

    def order(state):
        _, epoch_key = jax.random.split(jax.random.wrap_key_data(state.key, impl=_KEYS))
        epoch = state.step // experiment.steps
        return batches.epoch_order(jax.random.fold_in(epoch_key, epoch), count, batch_size)

    def step(objective, state, images, order):
        batch = devices.split(images[order[state.step % experiment.steps]])
        return train_step(experiment, objective, state, batch)

    def epoch(objective, state, images, order):
        def body(state, indices):
            batch = devices.split(images[indices])
            return train_step(experiment, objective, state, batch), None

        return lax.scan(body, state, order)[0]

    def batch(objective, state, batch):
        return train_step(experiment, objective, state, batch)

    return Programs(
        order=jit(order),
        step=jit(step, donate_argnums=1),
        epoch=jit(epoch, donate_argnums=1),
        batch=jit(
            batch, in_shardings=(sharding, sharding, devices.batch_sharding()), donate_argnums=1
        ),
    )


def runs_scan(config: ConfigDict) -> bool:
    """Whether an epoch is one scan: XLA's CPU backend runs convolutions in a loop 10x slower."""
    loop = config.train.loop
    return jax.default_backend() != "cpu" if loop == "auto" else loop == "scan"


def train_epoch(
    programs: Programs,
    objective: Objective,
    state: TrainState,
    images: Array | np.ndarray,
    *,
    scan: bool,
    after_step: Callable[[TrainState], bool] = lambda state: True,
) -> TrainState:
    """The rest of the present epoch, from wherever its state stands; the state is donated.

    Args:
      programs: of this run.
      objective: of this run.
      state: with step % steps batches of the epoch done.
      images: uint8 [count, height, width, channels], on every device, or streamed if NumPy's.
      scan: one program for all batches (GPU, TPU) instead of one call a batch.
      after_step: called after each batch, or once after a scan; False ends the epoch early.

    Returns:
      The state at the end of the epoch, or where after_step ended it.
    """
    order = programs.order(state)
    done = int(state.step) % len(order)
    if isinstance(images, np.ndarray):
        for batch in batches.stream(images, np.asarray(order)[done:]):
            state = programs.batch(objective, state, batch)
            if not after_step(state):
                break
        return state
    if scan:
        state = programs.epoch(objective, state, images, order[done:])
        after_step(state)
        return state
    for _ in range(done, len(order)):
        state = programs.step(objective, state, images, order)
        if not after_step(state):
            break
    return state


def origin(
    programs: Programs, objective: Objective, state: TrainState, images: Array | np.ndarray
) -> str:
    """Which operation makes the first number of an epoch that is not finite, and where.

    Runs the epoch again and, operation by operation, its first step that ends with such a number.

    Args:
      programs: of this run, not compiled ahead of time.
      objective: of this run.
      state: before the epoch, or a part of it; kept.
      images: as in `train_epoch`.

    Returns:
      Such as "step 3: invalid value (inf) encountered in exp at hsjax/models.py:24".
    """
    found: list[str] = []

    def watched(program):
        def step(objective, before, *batch):
            after = program(objective, jax.tree.map(jnp.copy, before), *batch)
            if not all(jnp.isfinite(x).all() for x in jax.tree.leaves(after)):
                inside = int(before.step) % len(before.history["loss"]) + 1
                culprit = _first_not_finite(program, objective, before, *batch)
                found.append(f"step {inside}: {culprit}")
            return after

        return step

    programs = programs._replace(step=watched(programs.step), batch=watched(programs.batch))
    train_epoch(
        *(programs, objective, state, images),
        scan=False,
        after_step=lambda _: not found,
    )
    return found[0] if found else "none in steps that are run one by one"


def _first_not_finite(function: Callable, *arguments) -> str:
    """What makes the first infinity or NaN in a jitted function, and the innermost lines of it."""
    try:
        with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
            function(*arguments)
    except FloatingPointError as error:
        lines = []
        for frame in traceback.extract_tb(error.__traceback__):
            for package in (Path(module).parent for module in (__file__, flax.__file__)):
                if Path(frame.filename).is_relative_to(package):
                    file = Path(frame.filename).relative_to(package.parent).as_posix()
                    lines.append(f"{file}:{frame.lineno}")
        ours = [line for line in lines if line.startswith("hsjax/")][-1]
        called = f", called from {ours}" if lines[-1] != ours else ""
        return f"{error} at {lines[-1]}{called}"
    return "none of its operations by itself"
