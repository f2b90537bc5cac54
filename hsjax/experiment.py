"""A run from its config to its results: data, checkpoints, logs, signals, evaluation."""

import os
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from hsjax import data, figures, train
from hsjax import evaluate as evaluation
from hsjax.checkpoints import Checkpoints
from hsjax.config import UserError, open_workdir, validate
from hsjax.logs import Progress, Records, write_json

SHOWN = ("loss", "mse", "kl", "beta")  # terms in the progress line


class Diverged(RuntimeError):
    """A term of the loss, or a parameter, stopped being a finite number."""


class Interrupted(RuntimeError):
    """The run was asked to stop and has saved its state; `signal` is what asked."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


def train_and_evaluate(config: ConfigDict, workdir: str | os.PathLike) -> dict:
    """Train (or continue) the run of a workdir and judge what comes out.

    Args:
      config: see configs/default.py.
      workdir: gets config.json, parameters.txt, metrics.jsonl, metrics.json, checkpoints/,
        figures/ and tensorboard/.

    Returns:
      The final numbers, as in metrics.json.

    Raises:
      UserError: a field, the data or the workdir is not usable.
      Diverged: a loss that is not finite; the last good checkpoint stays.
      Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    path, dataset, experiment, initial = _open(config, workdir)
    write_json(path / "config.json", config.to_dict())
    overview = parameter_overview.get_parameter_overview(initial.params, include_stats=False)
    (path / "parameters.txt").write_text(overview + "\n")
    print(_describe(experiment, dataset, initial))
    model = evaluation.inference(experiment)

    with Checkpoints(path / "checkpoints", config.train.checkpoints_kept) as checkpoints:
        state = checkpoints.restore(initial) or initial
        step = int(state.step)
        if step:
            print(f"continuing {path} after epoch {step // experiment.steps}, step {step}")
        with Records(path, step // experiment.steps, step) as records:
            with _Signals() as signals:
                state = _train(
                    experiment, dataset, state, model, checkpoints, records, signals.received
                )
            return _evaluate(path, experiment, model, state, dataset, records)


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> dict:
    """Judge the newest checkpoint of a workdir again; writes metrics.json and figures/.

    Raises:
      UserError: as `train_and_evaluate`, and if the workdir has no checkpoint.
    """
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoint: train it first with --mode=train")
    path, dataset, experiment, initial = _open(config, workdir)
    with Checkpoints(path / "checkpoints", config.train.checkpoints_kept) as checkpoints:
        state = checkpoints.restore(initial)
    if state is None:
        raise UserError(f"{path} has no good checkpoint: train it first with --mode=train")
    return _evaluate(path, experiment, evaluation.inference(experiment), state, dataset)


def _open(config, workdir):
    """Everything a run needs, or the UserError that says why not, before anything is written."""
    validate(config)
    path = open_workdir(config, workdir)
    dataset = data.load(config.data.name, config.data.dir)
    shape, count = dataset.train_images.shape[1:], len(dataset.train_images)
    return path, dataset, *train.create(config, shape, count)


def _train(experiment, dataset, state, model, checkpoints, records, stop_signal):
    """From `state` to the last epoch; everything with a side effect happens here."""
    config = experiment.config
    objective = train.objective(config)
    count = len(dataset.train_images)
    images = jnp.asarray(dataset.train_images)
    programs = train.programs(experiment, count)
    scan = train.runs_scan(config)
    first = int(state.step)
    last = config.train.epochs * experiment.steps
    if first < last:
        programs = _compile(experiment, programs, objective, state, images, scan)
    progress = Progress(config.train.epochs, experiment.steps, config.train.batch_size)

    def after_step(state):
        if progress.due():
            step = int(state.step)
            terms = _averages(state, _steps_in_history(experiment, step))
            progress.show(step, {n: terms[n] for n in SHOWN}, new=step - first)
            return stop_signal() is None and np.isfinite(terms["loss"])
        return stop_signal() is None

    try:
        while (before := int(state.step)) < last:
            started = time.monotonic()
            state = train.train_epoch(
                programs, objective, state, images, scan=scan, after_step=after_step
            )
            step = int(state.step)
            _check_finite(experiment, state, checkpoints)
            epoch, inside = divmod(step, experiment.steps)
            if inside == 0:
                seconds = time.monotonic() - started
                row = _averages(state, experiment.steps)
                if epoch == 1 and config.loss.relative_beta and row["kl"] > 0:
                    state = state._replace(beta_scale=jnp.float32(row["mse"] / row["kl"]))
                seen = (step - before) * config.train.batch_size
                rate = {"seconds": seconds, "images_per_second": seen / seconds}
                records.epoch({"epoch": epoch, "step": step, **row, **rate})
                shown = {name: row[name] for name in SHOWN}
                progress.show(step, shown, new=step - first, final=step == last)
                if epoch % config.train.checkpoint_every == 0 or step == last:
                    checkpoints.save(step, state)
                    for name, pictures in zip(
                        ("originals", "reconstructions"),
                        evaluation.example_images(model, state, dataset.test_images),
                        strict=True,
                    ):
                        records.images(name, np.asarray(pictures), step)
            if stop_signal() is not None:
                checkpoints.save(step, state)
                raise Interrupted(
                    f"stopped in epoch {epoch + (inside > 0)} and saved: "
                    "repeat the command to continue",
                    stop_signal(),
                )
    finally:
        progress.close()
    return state


def _compile(experiment, programs, objective, state, images, scan):
    """Compile before the clock starts, so that rates and the time left are those of training."""
    started = time.monotonic()
    order = jax.eval_shape(programs.order, state)
    programs = programs._replace(order=programs.order.lower(state).compile())
    if not scan:
        step = programs.step.lower(objective, state, images, order).compile()
        programs = programs._replace(step=step)
    elif int(state.step) % experiment.steps == 0:
        # The rest of an epoch stopped halfway is another program: jit compiles that when it's run.
        epoch = programs.epoch.lower(objective, state, images, order).compile()
        programs = programs._replace(epoch=epoch)
    print(f"compiled in {time.monotonic() - started:.1f} s", flush=True)
    return programs


def _steps_in_history(experiment, step):
    return (step - 1) % experiment.steps + 1 if step else 0


def _averages(state, steps) -> dict[str, float]:
    """Means over the first `steps` steps of the present epoch."""
    history = jax.device_get(state.history)
    return {name: float(np.mean(row[:steps], dtype=np.float64)) for name, row in history.items()}


def _check_finite(experiment, state, checkpoints):
    """Raise Diverged, naming the first bad step, unless all terms and parameters are finite."""
    step = int(state.step)
    steps = _steps_in_history(experiment, step)
    history = {name: np.asarray(row[:steps]) for name, row in state.history.items()}
    bad = np.flatnonzero(~np.isfinite(np.stack(list(history.values()))).all(axis=0))
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
    if not bad.size and finite:
        return
    inside = bad[0] if bad.size else steps - 1
    terms = ", ".join(f"{name} {row[inside]:.4g}" for name, row in history.items())
    kept = checkpoints.steps()
    raise Diverged(
        f"the loss is not finite in epoch {(step - 1) // experiment.steps + 1}, "
        f"step {inside + 1} of {experiment.steps}: {terms}; "
        + (f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no checkpoint yet")
        + "; a smaller train.learning_rate or loss.beta, or train.gradient_clip, may help"
    )


def _evaluate(path, experiment, model, state, dataset, records=None) -> dict:
    print("evaluating", flush=True)
    objective = train.objective(experiment.config)
    numbers, pictures = evaluation.evaluate(experiment, objective, model, state, dataset)
    write_json(path / "metrics.json", numbers)
    config = experiment.config
    figures.summary(
        path / "figures" / "summary.png",
        pictures,
        f"{dataset.name}, {config.loss.kind}, n = {config.model.latent_dim}, "
        f"epoch {numbers['epoch']}, seed {config.seed}, test MSE (sum) {numbers['mse_sum']:.4g}",
    )
    if records:
        records.results(numbers, int(state.step))
    print(evaluation.table(numbers, dataset))
    print(f"numbers: {path / 'metrics.json'}\npicture: {path / 'figures' / 'summary.png'}")
    return numbers


def _describe(experiment, dataset, state) -> str:
    """What is about to run: data, batches, model, device."""
    config = experiment.config
    count, batch_size = len(dataset.train_images), config.train.batch_size
    repeated = experiment.steps * batch_size - count
    height, width, channels = experiment.shape
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    return (
        f"{dataset.name}: {count} training images of {height}x{width}x{channels}, "
        f"{experiment.steps} batches of {batch_size} an epoch"
        + (f" (the last one filled up with {repeated} seen twice)" if repeated else "")
        + f"\n{config.loss.kind} VAE, n = {config.model.latent_dim}: "
        f"{parameters:,} parameters on {device.device_kind} ({device.platform})"
    )


class _Signals:
    """SIGINT and SIGTERM noted instead of obeyed; a second SIGINT interrupts at once."""

    def __init__(self):
        self._received = None

    def received(self) -> int | None:
        return self._received

    def __enter__(self):
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # the only one that may
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self._received = number
        print("\nstopping after this step, saving", flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
