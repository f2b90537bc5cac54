"""A run from its config to its results: data, checkpoints, logs, signals, evaluation."""

import functools
import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from hsjax import data, figures, report, train
from hsjax import evaluate as evaluation
from hsjax.checkpoints import Checkpoints
from hsjax.config import UserError, open_workdir, validate
from hsjax.files import replaced_together, write_json, write_npz
from hsjax.logs import Phases, Progress, Records, read_metrics

SHOWN = ("loss", "mse", "kl", "beta")  # terms in the progress line


class Diverged(RuntimeError):
    """A term of the loss, or a parameter, stopped being a finite number."""


class Interrupted(RuntimeError):
    """The run was asked to stop and has saved its state; `signal` is what asked."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, *, dataset: data.Dataset | None = None
) -> dict:
    """Train (or continue) the run of a workdir and judge what comes out.

    Runs of one process whose configs differ only in seed, data and the numbers of the loss share
    their compiled programs.

    Args:
      config: see configs/default.py.
      workdir: gets config.json, parameters.txt, metrics.jsonl, metrics.json, embeddings.npz,
        checkpoints/, figures/ and tensorboard/.
      dataset: what data.name would load, to load it once for several runs; its images may be on
        the device already.

    Returns:
      The final numbers, as in metrics.json.

    Raises:
      UserError: a field, the data or the workdir is not usable.
      Diverged: a loss that is not finite; the last good checkpoint stays.
      Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    run = _open(config, workdir, dataset)
    initial = run.experiment.initial(config.seed)
    write_json(run.path / "config.json", config.to_dict())
    overview = parameter_overview.get_parameter_overview(initial.params, include_stats=False)
    (run.path / "parameters.txt").write_text(overview + "\n")
    print(_describe(run, initial))

    with Checkpoints(run.path / "checkpoints", config.train.checkpoints_kept) as checkpoints:
        state = checkpoints.restore(initial) or initial
        step, steps = int(state.step), run.experiment.steps
        if step:
            print(f"continuing {run.path} after epoch {step // steps}, step {step}")
        with Records(run.path, step // steps, step) as records:
            with _Signals() as signals:
                state = _train(run, state, checkpoints, records, signals.received)
            return _evaluate(run, state, records)


def evaluate(
    config: ConfigDict, workdir: str | os.PathLike, *, dataset: data.Dataset | None = None
) -> dict:
    """Judge the newest checkpoint of a workdir again: metrics.json, embeddings.npz and figures/.

    What an earlier evaluation wrote stays if this one fails.

    Raises:
      UserError: as `train_and_evaluate`, and if the workdir has no checkpoint.
    """
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoint: train it first with --mode=train")
    run = _open(config, workdir, dataset)
    with Checkpoints(run.path / "checkpoints", config.train.checkpoints_kept) as checkpoints:
        state = checkpoints.restore(run.experiment.initial(config.seed))
    if state is None:
        raise UserError(f"{run.path} has no good checkpoint: train it first with --mode=train")
    return _evaluate(run, state)


class _Run(NamedTuple):
    """Everything a run needs."""

    config: ConfigDict
    path: Path
    dataset: data.Dataset
    experiment: train.Experiment
    programs: train.Programs
    model: evaluation.Inference


def _open(config, workdir, dataset) -> _Run:
    """The run, or the UserError that says why not, before anything is written."""
    validate(config)
    path = open_workdir(config, workdir)
    dataset = dataset or data.load(config.data.name, config.data.dir)
    evaluation.check(config, dataset)
    shape, count = dataset.train_images.shape[1:], len(dataset.train_images)
    experiment, programs = _built(train.static(config), shape, count)
    model = _inference(experiment, config.evaluate.latent_scale)
    return _Run(config, path, dataset, experiment, programs, model)


@functools.lru_cache(maxsize=8)
def _built(static, shape, count):
    """Experiment and programs, which a sweep over other fields shares."""
    experiment = train.build(static, shape, count)
    return experiment, train.programs(experiment, count)


_inference = functools.lru_cache(maxsize=8)(evaluation.inference)  # likewise


def _train(run, state, checkpoints, records, stop_signal):
    """From `state` to the last epoch; everything with a side effect happens here."""
    config, experiment, programs = run.config, run.experiment, run.programs
    objective = train.objective(config)
    images = jnp.asarray(run.dataset.train_images)
    scan = train.runs_scan(config)
    first = int(state.step)
    last = config.train.epochs * experiment.steps
    if first < last:
        started = time.monotonic()
        programs = _compiled(
            programs,
            *(_shapes(x) for x in (objective, state, images)),
            scan=scan,
            # The rest of an epoch stopped halfway is another program: jit compiles that when run.
            whole=first % experiment.steps == 0,
        )
        print(f"compiled in {time.monotonic() - started:.1f} s", flush=True)
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
                        evaluation.example_images(run.model, state, run.dataset.test_images),
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


def _shapes(tree):
    leaves, structure = jax.tree.flatten(tree)
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves), structure


@functools.lru_cache(maxsize=8)
def _compiled(programs, objective, state, images, *, scan, whole) -> train.Programs:
    """Compile before the clock starts, so that rates and the time left are those of training."""
    objective, state, images = (jax.tree.unflatten(t, x) for x, t in (objective, state, images))
    order = jax.eval_shape(programs.order, state)
    programs = programs._replace(order=programs.order.lower(state).compile())
    arguments = objective, state, images, order
    if not scan:
        return programs._replace(step=programs.step.lower(*arguments).compile())
    if whole:
        return programs._replace(epoch=programs.epoch.lower(*arguments).compile())
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


def _evaluate(run, state, records=None) -> dict:
    print("evaluating", flush=True)
    with replaced_together(run.path) as new, Phases() as say:
        found = evaluation.evaluate(run.config, run.experiment, run.model, state, run.dataset, say)
        say("drawing")
        _draw(new / "figures", run, found)
        write_npz(new / "embeddings.npz", found.arrays)
        write_json(new / "metrics.json", found.numbers)
    if records:
        records.results(found.numbers, int(state.step))
    print(report.table(found.numbers, run.dataset.name))
    print(f"numbers: {run.path / 'metrics.json'}\npictures: {run.path / 'figures'}")
    return found.numbers


def _draw(folder, run, found) -> None:
    """The figures of a run; those that some metric or label is missing for are left out."""
    config, numbers, arrays = run.config, found.numbers, found.arrays
    footer = (
        f"{run.dataset.name}, {config.loss.kind}, n = {config.model.latent_dim}, "
        f"epoch {numbers['epoch']}, seed {config.seed}, test MSE (sum) {numbers['mse_sum']:.4g}"
        + (f", latents × {scale:g}" if (scale := config.evaluate.latent_scale) != 1.0 else "")
    )
    labels = arrays.get("test_labels")
    figures.panels(folder / "summary.png", found.panels, footer)
    figures.interpolations(folder / "interpolations.png", found.interpolations, footer)
    if "groups" in arrays:
        shown = None if labels is None else labels[: len(arrays["groups"])]
        figures.groups_on_sphere(folder / "sphere.png", arrays["groups"], shown, footer)
    if "tsne" in arrays:
        shown = None if labels is None else labels[: len(arrays["tsne"])]
        figures.tsne(folder / "tsne.png", arrays["tsne"], shown, footer)
    if "cosine_mean" in arrays:
        figures.angle_profile(
            folder / "angles.png", arrays["cosine_mean"], arrays["cosine_spread"], footer
        )
        figures.overlap_histogram(
            *(folder / "overlaps.png", arrays["overlap_edges"], arrays["overlap_counts"], footer),
            dimension=config.model.latent_dim,
        )
    if rows := read_metrics(run.path):
        figures.training_curves(folder / "training.png", rows, footer)


def _describe(run, state) -> str:
    """What is about to run: data, batches, model, device."""
    config, dataset, experiment = run.config, run.dataset, run.experiment
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
