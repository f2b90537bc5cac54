"""Training as pure functions: (state, batch) -> state, and an epoch of such steps."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from ml_collections import ConfigDict, FrozenConfigDict

from hsjax import batches, devices, losses
from hsjax.errors import UserError
from hsjax.methods import METHODS, Method
from hsjax.models import VAE, Networks

_KEYS = "threefry2x32"  # whatever JAX's default is, the same seed gives the same numbers


class TrainState(NamedTuple):
    """All that a run is, between two steps: a checkpoint holds this and nothing else."""

    step: Array  # int32, steps done
    key: Array  # uint32 [2], never changes: random numbers come from it and the step or epoch
    params: dict  # "encoder", "decoder" and, where a method learns more, "method"
    batch_stats: dict  # the same for what no gradient changes
    optimizer: optax.OptState
    beta_scale: Array  # of loss.relative_beta: MSE / regulariser of the first epoch; else 1
    history: dict[str, Array]  # [steps per epoch] each: the terms of the present epoch's steps
    ema: dict | None = None  # of train.ema: moving averages of params and batch_stats, by name

    @property
    def averaged(self) -> "TrainState":
        """The state that is judged: moving averages, if any, replace what they average."""
        return self._replace(**self.ema) if self.ema else self

    @property
    def variables(self) -> dict:
        """What the method has besides the networks, by name."""
        return self.params.get("method", {}) | self.batch_stats.get("method", {})


class Objective(NamedTuple):
    """The numbers of the loss, as a pytree: runs that differ only in them share one program."""

    beta: Array
    annealing_epochs: Array
    hyper: Any  # of the method


Examples = tuple[Array | np.ndarray, Array | np.ndarray | None]
"""Images, uint8 [count, height, width, channels], and labels, int32 [count], None if unlabelled."""


class Setup(NamedTuple):
    """What is fixed during a run: the functions of a config on images of one shape.

    Hashable, and equal for all runs with equal `static` configs, so that they share programs.
    """

    config: FrozenConfigDict  # the static fields
    method: Method
    shape: tuple[int, int, int]  # of an image as it is in the data: height, width, channels
    steps: int  # per epoch
    graph: nnx.GraphDef
    multiple: int  # images are padded to sides that it divides
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[ArrayLike], ArrayLike]  # of the step
    initial: Callable[..., TrainState]  # of the seed, the run's numbers and some training images
    like: Callable[[Objective], TrainState]  # shapes and dtypes of a state, without any numbers

    def model(self, objective: Objective, state: TrainState) -> "Model":
        """The autoencoder of a state, and its method with the numbers of the run."""
        return Model(self, objective, state.params, state.batch_stats)


class Model:
    """An autoencoder with its arrays, for images in [0, 1] of the data's shape."""

    def __init__(self, setup: Setup, objective: Objective, params: dict, batch_stats: dict):
        trees = [{k: v for k, v in tree.items() if k != "method"} for tree in (params, batch_stats)]
        self.networks: VAE = nnx.merge(setup.graph, *trees)
        # Calls without `train` see the statistics from before, which have no derivative.
        self._at_rest: VAE = nnx.merge(setup.graph, *trees)
        self._statistics = batch_stats.get("method", {})
        self.variables = params.get("method", {}) | self._statistics
        self._setup, self._params, self._hyper = setup, params, objective.hyper

    def encode(self, images: Array, *, train: bool = False) -> Any:
        """[batch, height, width, channels] -> posterior, whose mean is [batch, n]."""
        images = batches.pad(images, self._setup.multiple)
        networks = self.networks if train else self._at_rest
        return self.posterior(networks.encode(images, train=train))

    def posterior(self, outputs: Array) -> Any:
        """The posterior given by the encoder's outputs [batch, head]."""
        return self._setup.method.posterior(outputs, hyper=self._hyper, variables=self.variables)

    def decode(self, z: Array, *, train: bool = False, scale: float = 1.0) -> Array:
        """z [batch, n] -> images of scale · z; a model that projects puts z on the sphere first."""
        networks = self.networks if train else self._at_rest
        images = networks.decode(z, train=train, scale=scale)
        return batches.crop(images, *self._setup.shape[:2])

    def context(self) -> dict[str, Any]:
        """What methods may ask for by name."""
        return {"variables": self.variables, "encode": self.encode, "decode": self.decode}

    def regularise(self, posterior: Any, z: Array, **batch) -> dict[str, Array]:
        """The terms of the method's regulariser for a batch: scalars by name.

        `batch` is the rest of the regulariser's context: see `Method`.
        """
        context = self._of_batch(batch)
        return self._setup.method.regulariser(self._hyper, posterior, z, **context)

    def statistics(self, posterior: Any, z: Array, **batch) -> dict:
        """The statistics after a batch: BatchNorm's and, if it has any, the method's."""
        found = nnx.to_pure_dict(nnx.state(self.networks, nnx.BatchStat))
        if self._statistics:
            context = self._of_batch(batch)
            found["method"] = self._setup.method.update(self._hyper, posterior, z, **context)
        return found

    def _of_batch(self, batch: dict) -> dict[str, Any]:
        return self.context() | {"params": self._params} | batch


def static(config: ConfigDict) -> FrozenConfigDict:
    """The fields that shape a run's programs; seed, data, method and numbers are not in it."""
    return FrozenConfigDict(
        {
            "data": {"flip": config.data.flip},
            "model": config.model.to_dict(),
            "loss": {name: config.loss[name] for name in ("annealing", "relative_beta")},
            "train": config.train.to_dict(),
        }
    )


def random_key(seed: int) -> Array:
    """The key of a run's random numbers, of one kind whatever JAX_DEFAULT_PRNG_IMPL says."""
    return jax.random.key(seed, impl=_KEYS)


def create(
    config: ConfigDict,
    shape: tuple[int, int, int],
    count: int,
    images: ArrayLike | None = None,
    networks: Networks | None = None,
) -> tuple[Setup, TrainState]:
    """The setup of a config and its initial state.

    Args:
      config: see configs/default.py.
      shape: (height, width, channels) of the images.
      count: number of training images.
      images: some of these, uint8, for methods that start from images; a black one if None.
      networks: builds the encoder and the decoder; the ResNets of `hsjax.models` if None.

    Raises:
      UserError: a batch larger than the data, more steps than int32 can count, or networks whose
        outputs have other shapes than `hsjax.models.Networks` says.
    """
    setup = build(static(config), METHODS[config.method.name], shape, count, networks)
    return setup, setup.initial(config.seed, build_objective(config), images)


def build(
    config: FrozenConfigDict,
    method: Method,
    shape: tuple[int, int, int],
    count: int,
    networks: Networks | None = None,
) -> Setup:
    """The setup of the `static` fields of a config; the rest is as in `create`."""
    steps = batches.steps_per_epoch(count, config.train.batch_size)
    multiple = 1 if networks else 2 ** len(config.model.stages)
    padded = batches.pad(jnp.zeros((1, *shape), jnp.uint8), multiple).shape[1:]
    n = config.model.latent_dim

    train = config.train
    if train.epochs * steps >= 2**31:  # the step is int32
        raise UserError(
            f"train.epochs={train.epochs}: an epoch has {steps} steps, "
            f"so make it at most {(2**31 - 1) // steps}"
        )
    learning_rate, clip, decay = schedule(train, steps), train.gradient_clip, train.weight_decay
    adam = functools.partial(optax.adamw, weight_decay=decay, mask=_are_kernels)
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        (adam if decay else optax.adam)(learning_rate, eps=train.adam_eps),
    )

    def split(key):
        vae = VAE(
            padded,
            n,
            tuple(config.model.stages),
            jnp.dtype(config.model.dtype),
            outputs=method.head(n),
            project=config.model.project or method.project,
            initialisation=config.model.initialisation,
            networks=networks,
            rngs=nnx.Rngs(key),
        )
        return nnx.split(vae, nnx.Param, nnx.BatchStat)

    def names(objective, params, batch_stats):
        """Names of the regulariser's terms, found without computing any."""

        def terms():
            model, key = Model(setup, objective, params, batch_stats), random_key(0)
            posterior = model.posterior(jnp.zeros((train.batch_size, method.head(n)), jnp.float32))
            images = jnp.zeros((train.batch_size, *shape), jnp.float32)
            batch = {"images": images, "reconstructions": images, "key": key, "sample_key": key}
            batch |= {"labels": jnp.zeros(train.batch_size, jnp.int32), "epoch": jnp.int32(1)}
            return model.regularise(posterior, posterior.mean, **batch)

        return list(jax.eval_shape(terms))

    def initial(key, objective, images):
        params_key, run_key = jax.random.split(key)
        _, params, batch_stats = split(params_key)
        params, batch_stats = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
        images = images.astype(jnp.float32) / 255.0
        for tree, of_method in ((params, method.variables), (batch_stats, method.statistics)):
            variables = of_method(jax.random.fold_in(params_key, 0), n, objective.hyper, images)
            if variables:
                tree["method"] = variables
        terms = ["loss", "mse", *names(objective, params, batch_stats), "beta", "learning_rate"]
        averages = {"params": params, "batch_stats": batch_stats}
        return TrainState(
            step=jnp.int32(0),
            key=jax.random.key_data(run_key),
            params=params,
            batch_stats=batch_stats,
            optimizer=optimizer.init(params),
            beta_scale=jnp.float32(1.0),
            history={name: jnp.zeros(steps, jnp.float32) for name in terms},
            ema=averages if train.ema else None,
        )

    # One program instead of a hundred, run once: compiling it in full would take longer than
    # compiling a training step. The numbers are the same to the bit.
    quickly = jax.jit(initial, compiler_options={"xla_backend_optimization_level": 1})
    black = np.zeros((1, *shape), np.uint8)

    def begin(seed, objective, images=None):
        return quickly(random_key(seed), objective, black if images is None else images)

    def like(objective):
        return jax.eval_shape(initial, random_key(0), objective, black)

    setup = Setup(
        config=config,
        method=method,
        shape=tuple(shape),  # type: ignore[arg-type]
        steps=steps,
        graph=jax.eval_shape(split, random_key(0))[0],
        multiple=multiple,
        optimizer=optimizer,
        learning_rate=learning_rate,
        initial=begin,
        like=like,
    )
    if networks:
        _check_networks(setup, split)
    return setup


def _constant(train: Any, steps: int, warm: int) -> optax.Schedule:
    return optax.constant_schedule(train.learning_rate)


def _cosine(train: Any, steps: int, warm: int) -> optax.Schedule:
    """A cosine from the end of the warm-up to 0 after the last step."""
    last = train.epochs * steps
    cosine = optax.cosine_decay_schedule(train.learning_rate, max(1, last - warm))
    return lambda step: cosine(step - warm)


def _step(train: Any, steps: int, warm: int) -> optax.Schedule:
    """A constant, multiplied by decay_factor after each of decay_epochs."""
    decays = {e * steps: train.decay_factor for e in train.decay_epochs if e < train.epochs}
    return optax.piecewise_constant_schedule(train.learning_rate, decays)


SCHEDULES: dict[str, Callable[[Any, int, int], optax.Schedule]] = {
    "step": _step,
    "cosine": _cosine,
    "constant": _constant,
}


def schedule(train: Any, steps: int) -> optax.Schedule:
    """The learning rate of a step, after a warm-up that grows linearly from 0.

    Args:
      train: the fields under `train`.
      steps: of an epoch.
    """
    warm = min(round(train.warmup_epochs * steps), 2**31 - 1)
    after = SCHEDULES[train.schedule](train, steps, warm)
    if not warm:
        return after
    return lambda step: jnp.minimum(step / warm, 1.0) * after(jnp.maximum(step, warm))


def _are_kernels(params: dict) -> dict:
    """Which of the parameters weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _averages(decay: float, state: TrainState, params: dict, batch_stats: dict) -> dict | None:
    """Averages of parameters and statistics after a step; as in TensorFlow, early ones count less.

    What a method keeps among the statistics is not averaged.
    """
    if not state.ema:
        return None
    done = state.step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    new = {"params": params, "batch_stats": batch_stats}
    ema = jax.tree.map(
        lambda old, x: (keep * old + (1.0 - keep) * x).astype(x.dtype), state.ema, new
    )
    if "method" in batch_stats:
        ema["batch_stats"]["method"] = batch_stats["method"]
    return ema


def _check_networks(setup: Setup, split: Callable) -> None:
    """Raise a UserError unless encoder and decoder give what they should."""
    config, batch = setup.config, 2
    n, head = config.model.latent_dim, setup.method.head(config.model.latent_dim)

    def outputs():
        vae = nnx.merge(*split(random_key(0)))
        codes = vae.encode(jnp.zeros((batch, *setup.shape), jnp.float32), train=True)
        return codes, vae.decode(jnp.zeros((batch, n), jnp.float32), train=True)

    found = [x.shape for x in jax.eval_shape(outputs)]
    wanted = [(batch, head), (batch, *setup.shape)]
    for part, given, right in zip(("encoder", "decoder"), found, wanted, strict=True):
        if given != right:
            raise UserError(
                f"networks: for {batch} images the {part} gives {given}: make it {right}"
            )


def build_objective(config: ConfigDict) -> Objective:
    """The numbers of a config's loss.

    Raises:
      ValueError: the method refuses one of its fields.
    """
    fields = config.method.to_dict()
    method = METHODS[fields.pop("name")]

    @jax.jit
    def build():
        hyper = method.hyper(config.model.latent_dim, **fields)
        tree = Objective(config.loss.beta, config.loss.annealing_epochs, hyper)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    return build()


@jax.numpy_dtype_promotion("standard")  # which optax needs
def train_step(
    setup: Setup,
    objective: Objective,
    state: TrainState,
    images: Array,
    labels: Array | None = None,
) -> TrainState:
    """One step of Adam on MSE + β regulariser, equations (2) and (6).

    Args:
      setup: of this run (static).
      objective: of this run.
      state: before the step.
      images: uint8 [batch, height, width, channels].
      labels: int32 [batch], for methods that use them.

    Returns:
      The state after it, with the terms of this step in its history.
    """
    config = setup.config
    step_key, _ = jax.random.split(jax.random.wrap_key_data(state.key, impl=_KEYS))
    flip_key, noise_key = jax.random.split(jax.random.fold_in(step_key, state.step))
    images = batches.prepare(images, flip_key, flip=config.data.flip)
    epoch = state.step // setup.steps + 1
    beta = objective.beta * state.beta_scale
    if config.loss.relative_beta:  # there is nothing yet that β could be relative to
        beta = jnp.where(epoch == 1, 1.0, beta)
    beta *= losses.annealing(epoch, form=config.loss.annealing, length=objective.annealing_epochs)

    def loss_of(params):
        model = Model(setup, objective, params, state.batch_stats)
        posterior = model.encode(images, train=True)
        z = posterior.sample(noise_key)
        reconstructions = model.decode(z, train=True)
        mse = losses.squared_error(images, reconstructions)
        batch = {"images": images, "labels": labels, "reconstructions": reconstructions}
        batch |= {"key": jax.random.fold_in(noise_key, 1), "sample_key": noise_key, "epoch": epoch}
        terms = model.regularise(posterior, z, **batch)
        loss = mse + beta * terms["regulariser"]
        statistics = model.statistics(posterior, z, **batch)
        return loss, (statistics, {"loss": loss, "mse": mse, **terms})

    gradients, (batch_stats, terms) = jax.grad(loss_of, has_aux=True)(state.params)
    updates, optimizer = setup.optimizer.update(gradients, state.optimizer, state.params)
    terms |= {"beta": beta, "learning_rate": setup.learning_rate(state.step)}
    index = state.step % setup.steps
    params = optax.apply_updates(state.params, updates)
    return state._replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        optimizer=optimizer,
        ema=_averages(config.train.ema, state, params, batch_stats),
        history={name: row.at[index].set(terms[name]) for name, row in state.history.items()},
    )


def steps_done(state: TrainState) -> int:
    """Steps done by a run, or by the furthest of several that are trained together."""
    return int(np.asarray(state.step).max())


class Programs(NamedTuple):
    """The compiled programs of a run; each donates the state it is given."""

    order: Callable  # state -> int32 [steps, batch]: which images make up the epoch's batches
    step: Callable  # (objective, state, examples, order) -> state after the epoch's next batch
    epoch: Callable  # (objective, state, examples, order[k:]) -> state after all these batches
    batch: Callable  # (objective, state, batch) -> state after a batch that comes from the host


def compile_programs(setup: Setup, count: int, mesh: Mesh | None = None) -> Programs:
    """Jit the parts of an epoch over `count` training images.

    The devices share each batch; other arguments and all results are whole on each of them.

    Args:
      setup: of the run.
      count: of the training images.
      mesh: if given, the programs are those of several runs, which its devices share along its
        axis `run`. Objectives and states are [runs, ...] then, an order is [steps, runs, batch],
        and nothing is streamed.
    """
    batch_size = setup.config.train.batch_size
    sharding = devices.replicated()
    jit = functools.partial(jax.jit, in_shardings=sharding, out_shardings=sharding)

    def order(state):
        _, epoch_key = jax.random.split(jax.random.wrap_key_data(state.key, impl=_KEYS))
        epoch = state.step // setup.steps
        return batches.epoch_order(jax.random.fold_in(epoch_key, epoch), count, batch_size)

    def of(indices, examples):
        return jax.tree.map(lambda x: devices.split(x[indices]), examples)

    def step(objective, state, examples, order):
        batch = of(order[state.step % setup.steps], examples)
        return train_step(setup, objective, state, *batch)

    def epoch(objective, state, examples, order):
        def body(state, indices):
            return train_step(setup, objective, state, *of(indices, examples)), None

        return lax.scan(body, state, order)[0]

    def batch(objective, state, examples):
        return train_step(setup, objective, state, *examples)

    if mesh:
        together = functools.partial(_together, mesh)
        return Programs(
            order=together(order, (0,), 1),
            step=together(step, (0, 0, None, 1), donate_argnums=1),
            epoch=together(epoch, (0, 0, None, 1), donate_argnums=1),
            batch=batch,
        )
    return Programs(
        order=jit(order),
        step=jit(step, donate_argnums=1),
        epoch=jit(epoch, donate_argnums=1),
        batch=jit(
            batch, in_shardings=(sharding, sharding, devices.batch_sharding()), donate_argnums=1
        ),
    )


def _together(mesh: Mesh, function, axes, out=0, **settings) -> Callable:
    """The jitted function of several runs; `axes` and `out` are their axes, as in `jax.vmap`."""
    specs = [
        PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "run")
        for axis in (*axes, out)
    ]
    shardings = [NamedSharding(mesh, spec) for spec in specs]

    @devices.apart()
    def of_device(*arguments):
        return jax.vmap(function, axes, out)(*arguments)

    mapped = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=tuple(specs[:-1]),
        out_specs=specs[-1],
        check_vma=False,
    )
    *given, found = shardings
    return jax.jit(mapped, in_shardings=tuple(given), out_shardings=found, **settings)


def runs_scan(config: ConfigDict) -> bool:
    """Whether an epoch is one scan: XLA's CPU backend runs convolutions in a loop 10x slower."""
    loop = config.train.loop
    return jax.default_backend() != "cpu" if loop == "auto" else loop == "scan"


def train_epoch(
    programs: Programs,
    objective: Objective,
    state: TrainState,
    examples: Examples,
    *,
    scan: bool,
    after_step: Callable[[TrainState], bool] = lambda state: True,
) -> TrainState:
    """Train the rest of the present epoch, from where the state is; the state is donated.

    Args:
      programs: of this run.
      objective: of this run.
      state: with step % steps batches of the epoch done.
      examples: images and labels, on every device, or streamed if they are NumPy's.
      scan: one program for all batches (GPU, TPU) instead of one call a batch.
      after_step: called after each batch, or once after a scan; False ends the epoch early.

    Returns:
      The state at the end of the epoch, or where after_step ended it.
    """
    order = programs.order(state)
    done = steps_done(state) % len(order)
    if isinstance(examples[0], np.ndarray):
        for batch in batches.stream(examples, np.asarray(order)[done:]):
            state = programs.batch(objective, state, batch)
            if not after_step(state):
                break
        return state
    if scan:
        state = programs.epoch(objective, state, examples, order[done:])
        after_step(state)
        return state
    for _ in range(done, len(order)):
        state = programs.step(objective, state, examples, order)
        if not after_step(state):
            break
    return state
