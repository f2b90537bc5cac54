"""A run from its config to its results: data, checkpoints, logs, signals, evaluation."""

import functools
import os
import signal
import threading
import time
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from hsjax import (
    batches,
    cards,
    data,
    debug,
    devices,
    evaluation,
    figures,
    logs,
    report,
    runs,
    training,
)
from hsjax.checkpoints import Checkpoints
from hsjax.config import check_workdir, of_evaluation, read_record, validate
from hsjax.errors import Diverged, Interrupted, UserError
from hsjax.files import (
    locked,
    recover,
    replaced_together,
    workdir_path,
    write_json,
    write_npz,
    write_text,
    writing,
)
from hsjax.inference import (
    Inference,
    build_inference,
    embed,
    example_images,
    mean_squared_error,
    whole_batch,
)
from hsjax.logs import Records, best_step, read_metrics
from hsjax.methods import METHODS
from hsjax.metrics import ood
from hsjax.models import Networks
from hsjax.sampling import keys
from hsjax.terminal import Phases, Progress, fold, tell

_COUNT = "training_images"  # in data.json: how many of the loaded ones are trained on
SHOWN = ("loss", "mse", "regulariser", "beta")  # terms in the progress line


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    dataset: data.Dataset | None = None,
    networks: Networks | None = None,
) -> dict:
    """Train (or continue) the run of a workdir, then judge it.

    Runs of one process whose configs differ only in seed, data and the numbers of the loss share
    their compiled programs. With several processes (see devices.connect), all train, and only the
    first one writes and evaluates.

    Args:
      config: see configs/default.py.
      workdir: gets config.json, data.json, parameters.txt, metrics.jsonl, metrics.json, card.md,
        embeddings.npz, posteriors.npz, checkpoints/, fits/, figures/ and tensorboard/.
      dataset: used instead of loading data.name, for example to load it once for several runs; its
        images may be on the device already.
      networks: builds your own encoder and decoder; see `hsjax.models.Networks`.

    Returns:
      The final numbers, as in metrics.json; an empty dictionary in processes after the first.

    Raises:
      UserError: a field, the data or the workdir is not usable, the devices can't share a batch, or
        the disk is full.
      Diverged: a loss that is not finite; the last good checkpoint is kept.
      Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    with _opened(config, workdir, dataset, networks) as member:
        with _Signals() as signals:
            state = _train([member], signals.received)[0]
        with devices.first_alone() as mine:
            return _judge(member, state) if mine else {}


def train_and_evaluate_together(
    configs: Sequence[ConfigDict], workdirs: Sequence[str | os.PathLike], dataset: data.Dataset
) -> Iterator[tuple[dict | Diverged, float]]:
    """Train (or continue) several runs in one program, and judge them one after the other.

    The devices share the runs, while in `train_and_evaluate` they share each batch. Results equal
    those of each run alone, up to rounding. A run that diverges does not end the others. On a CPU,
    set jax_num_cpu_devices to the number of runs before JAX starts.

    Args:
      configs: equal except for seed, β and the numbers of the method: see `joins`.
      workdirs: of the runs.
      dataset: of all of them.

    Yields:
      (numbers, seconds) of each run in order, once it is judged; for a run that diverged, its error
      in place of numbers. The seconds are its share of the training, plus its evaluation.

    Raises:
      UserError: as `train_and_evaluate`; runs that can't be joined, or that take too much memory.
      Interrupted: after SIGINT or SIGTERM, with all states saved.
    """
    with ExitStack() as held:
        begun = time.monotonic()
        members = [
            held.enter_context(_opened(config, workdir, dataset, together=True))
            for config, workdir in zip(configs, workdirs, strict=True)
        ]
        tell(_describe(members[0].run, members[0].initial))
        by_step: dict[int, list[int]] = {}
        for i, member in enumerate(members):  # a kill may have come between two checkpoints
            by_step.setdefault(int(member.state.step), []).append(i)
        found: dict[int, training.TrainState | Diverged] = {}
        with _Signals() as signals:
            for some in by_step.values():
                ends = _train([members[i] for i in some], signals.received, together=True)
                found |= dict(zip(some, ends, strict=True))
        share = (time.monotonic() - begun) / len(members)
        for i, member in enumerate(members):
            begun, end = time.monotonic(), found[i]
            if not isinstance(end, Diverged):
                tell(f"\n{member.run.path}")
            result = end if isinstance(end, Diverged) else _judge(member, end)
            yield result, share + time.monotonic() - begun


def joins(config: ConfigDict) -> Hashable:
    """What must be equal for runs to be trained together, by `train_and_evaluate_together`."""
    fields = config.data.to_json(), config.method.name
    return fields, training.static(config), _shapes(training.build_objective(config))


class _Member(NamedTuple):
    """A run with all that it holds open."""

    run: "_Run"
    initial: training.TrainState
    state: training.TrainState  # that training continues from
    checkpoints: Checkpoints
    records: Records | None  # only in the first process


@contextmanager
def _opened(config, workdir, dataset, networks=None, together=False) -> Iterator[_Member]:
    """Lock a workdir, write its files and yield its run, with the state to continue from."""
    with ExitStack() as held:
        path = held.enter_context(_workdir(config, workdir))
        with devices.all_or_none():
            run = _open(config, path, dataset, networks)
            if not together:
                count = len(run.dataset.train_images)
                batches.check_divisible(count, config.train.batch_size, jax.device_count())
        _check_alike(run)
        run = run._replace(streamed=_is_streamed(run))
        initial = _initial(run)
        keeper = Checkpoints(run.path / "checkpoints", config.train.checkpoints_kept)
        checkpoints = held.enter_context(keeper)
        with devices.all_or_none():
            if devices.is_first():
                checkpoints.probe()
                with writing(run.path):
                    write_json(run.path / "config.json", config.to_dict())
                    write_json(run.path / "data.json", _about(run))
                    overview = parameter_overview.get_parameter_overview(
                        initial.params, include_stats=False
                    )
                    write_text(run.path / "parameters.txt", overview + "\n")
        if not together:
            tell(_describe(run, initial))
        with devices.all_or_none():
            state = checkpoints.restore(initial) or initial
        state = devices.broadcast(state)
        step, steps = int(state.step), run.setup.steps
        if step:
            tell(f"continuing {run.path} after epoch {step // steps}, step {step}")
        with devices.all_or_none():
            records = None
            if devices.is_first():
                writer = config.log.writer
                records = held.enter_context(Records(run.path, step // steps, step, writer))
        if step:
            _picture(run, state, records)  # a kill may have come before those of this step
        yield _Member(run, initial, state, checkpoints, records)


def _judge(member, state) -> dict:
    """The numbers of a run that has been trained."""
    run, config = member.run, member.run.config
    if config.evaluate.checkpoint == "best":
        state = runs.restored(config, run.path, member.checkpoints, member.initial)
    return _evaluate(run, state, member.records)


def evaluate(
    workdir: str | os.PathLike,
    fields: Mapping[str, Any] | None = None,
    *,
    dataset: data.Dataset | None = None,
    networks: Networks | None = None,
) -> dict:
    """Judge a trained workdir again, with the config saved there.

    Its evaluate.checkpoint chooses the newest or the best checkpoint. The results of an earlier
    evaluation are kept if this one fails before it has all numbers.

    Args:
      workdir: of a trained run. Its metrics.json, card.md, embeddings and figures are replaced.
      fields: other values for some fields of `sample` and `evaluate`, by dotted name, such as
        {"evaluate.split": "validation"}; and data.name, data.dir or data.device_share, if the data
        has moved.
      dataset: used instead of loading data.name.
      networks: what the run was trained with, if they were your own.

    Returns:
      The numbers, as in metrics.json.

    Raises:
      UserError: as `train_and_evaluate`; other fields; or the workdir has no checkpoint.
    """
    path = workdir_path(workdir)
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path} has no checkpoint: train it first with --mode=train")
    config = of_evaluation(path, fields or {})
    with _workdir(config, path) as path:
        run = _open(config, path, dataset, networks)
        with Checkpoints(path / "checkpoints", config.train.checkpoints_kept) as checkpoints:
            state = runs.restored(config, path, checkpoints, run.setup.like(run.objective))
        return _evaluate(run, state)


@contextmanager
def _workdir(config, workdir) -> Iterator[Path]:
    """Lock the workdir of a config against other runs, or raise a UserError that says why not."""
    with ExitStack() as held:
        with devices.all_or_none():
            path = workdir_path(workdir)
            validate(config)
            if devices.is_first():
                held.enter_context(locked(path))
                check_workdir(config, path)
                recover(path)
        yield path


class _Run(NamedTuple):
    """Everything a run needs."""

    config: ConfigDict
    path: Path
    dataset: data.Dataset
    others: dict[str, evaluation.Outside]
    checksums: dict  # of the arrays that were loaded, as data.json holds them
    setup: training.Setup
    objective: training.Objective
    programs: training.Programs
    inference: Inference
    watched: tuple  # during training: "validation" or "test", then images and labels
    streamed: bool = False  # whether the training images stay on the host


def _open(config, path, dataset, networks=None) -> _Run:
    """Build the run, or raise a UserError, before anything is written."""
    dataset = data.of_config(config.data) if dataset is None else data.checked(dataset)
    logs.check(config.log.writer)
    checksums = _checksums(dataset)
    _check_data(path, checksums)
    dataset, left_out = data.leave_out(dataset, config.data.leave_out, config.evaluate.split)
    share = config.data.validation_share
    tests = dict(zip(("test_images", "test_labels"), dataset[3:], strict=True))
    watch = "validation" if share else config.evaluate.split
    dataset = data.hold_out(dataset, share, watch)  # a copy: a large set should not need two
    watched = watch, *dataset[3:]
    if config.evaluate.split == "test":
        dataset = dataset._replace(**tests)
    evaluation.check(config, dataset)
    others = evaluation.outside(config, dataset, left_out)
    shape, count = dataset.train_images.shape[1:], len(dataset.train_images)
    method = METHODS[config.method.name]
    setup, programs = _built(training.static(config), method, shape, count, networks)
    objective = training.build_objective(config)
    try:
        batch = config.train.batch_size
        notes = method.check(objective.hyper, dataset.train_labels, batch)
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    for note in notes:
        tell(fold(f"note: {note}"))
    wanted = config.evaluate
    inference = build_inference(setup, objective, wanted.latent_scale, wanted.batch_norm)
    functions = setup, objective, programs, inference
    return _Run(config, path, dataset, others, checksums, *functions, watched)


def _initial(run) -> training.TrainState:
    """The state a run begins with; its method sees up to 1,000 training images, drawn at random."""
    images, seed = run.dataset.train_images, run.config.seed
    chosen = np.random.default_rng(seed).permutation(len(images))[:1000]
    return run.setup.initial(seed, run.objective, images[np.sort(chosen)])


def _checksums(dataset) -> dict:
    """Shape and CRC of each array of a data set."""
    found = {}
    for name, array in dataset._asdict().items():
        if name.endswith("_images"):
            array = np.ascontiguousarray(array)
        elif name.endswith("_labels") and array is not None:
            array = np.ascontiguousarray(array, np.int64)
        else:
            continue
        found[name] = {"shape": list(array.shape), "crc32": zlib.crc32(array.data)}
    return found


def _about(run) -> dict:
    """What data.json holds."""
    return run.checksums | {_COUNT: len(run.dataset.train_images)}


def _check_data(path, checksums) -> None:
    """Raise a UserError if the run of a workdir began with other data."""
    there = read_record(path / "data.json") if devices.is_first() else None
    if there is None:  # a new run, or one of an earlier version
        return
    there.pop(_COUNT, None)
    if differing := [n for n in sorted(there | checksums) if there.get(n) != checksums.get(n)]:
        raise UserError(
            f"{path} is of a run on other data ({', '.join(differing)} differ): "
            "give data.name the data it began with, or choose another --workdir"
        )


def _is_streamed(run) -> bool:
    """Whether the training images take too much of a device's memory, in any process."""
    images = run.dataset.train_images
    return not all(devices.allgather(isinstance(images, jax.Array) or fits(images, run.config)))


def fits(images, config: ConfigDict) -> bool:
    """Whether training images take no more of a device's memory than data.device_share."""
    return images.nbytes <= config.data.device_share * devices.memory()


def _check_alike(run) -> None:
    """Raise a UserError unless all processes have the same config and images."""
    if jax.process_count() > 1:
        images = run.checksums["train_images"]["crc32"]
        if len(set(devices.allgather(zlib.crc32(run.config.to_json().encode(), images)))) > 1:
            raise UserError("the processes of the run differ in config or data: give all the same")


@functools.lru_cache(maxsize=8)
def _built(static, method, shape, count, networks):
    """Setup and programs, which a sweep over other fields shares."""
    setup = training.build(static, method, shape, count, networks)
    return setup, training.compile_programs(setup, count)


@functools.lru_cache(maxsize=8)
def _built_together(setup, count, mesh) -> training.Programs:
    """The programs of several runs."""
    return training.compile_programs(setup, count, mesh)


def _train(members, stop_signal, together=False) -> list:
    """Train from the members' states to the last epoch; all side effects happen here.

    Returns the last state of each. Of runs trained together, one that diverged returns its error.
    """
    run, count = members[0].run, len(members)
    config, setup = run.config, run.setup
    objectives, states = [m.run.objective for m in members], [m.state for m in members]
    examples = run.dataset.train_images, run.dataset.train_labels
    first, last = int(states[0].step), config.train.epochs * setup.steps
    if first >= last:
        return states
    several = jax.process_count() > 1
    place: devices.Alone | devices.Joined = devices.Alone()
    programs = run.programs
    if together:
        _check_joined(run)
        mesh = devices.of_runs(count)
        place = devices.Joined(count, mesh)
        programs = _built_together(setup, len(examples[0]), mesh)
    objective, state = place.join(objectives), place.join(states)
    if not run.streamed:
        examples = place.replicate(jax.tree.map(jnp.asarray, examples))
    scan = training.runs_scan(config) and not run.streamed
    with Phases() as say:
        say("compiling")
        programs = _compiled(
            programs,
            _shapes(objective),
            _shapes(state),
            _shapes(examples),
            streamed=run.streamed,
            scan=scan,
            # The rest of an epoch stopped halfway is another program: jit compiles it when run.
            whole=first % setup.steps == 0,
        )
    if together:
        _check_memory(programs, count, mesh)
    progress = Progress(config.train.epochs, setup.steps, config.train.batch_size * count)
    ended: dict[int, Diverged] = {}  # runs that have diverged

    def after_step(state):
        if progress.due():
            step = training.steps_done(state)
            rows = [
                _averages(history, _steps_in_history(setup, step))
                for i, history in enumerate(place.part(state.history))
                if i not in ended
            ]
            progress.show(step, _shown(rows, SHOWN), new=step - first)
            if not (several or together or np.isfinite(rows[0]["loss"])):
                return False
        return several or stop_signal() is None  # processes stop together, after an epoch

    try:
        while (before := training.steps_done(state)) < last:
            started = time.monotonic()
            origin = None
            if config.train.debug_nans:
                start = jax.tree.map(jnp.copy, state)  # the state itself is donated
                origin = functools.partial(
                    debug.first_not_finite, run.programs, objective, start, examples
                )
            state = training.train_epoch(
                programs, objective, state, examples, scan=scan, after_step=after_step
            )
            step = training.steps_done(state)
            epoch, inside = divmod(step, setup.steps)
            states, rows = place.part(state), []
            for i, (member, own) in enumerate(zip(members, states, strict=True)):
                if i in ended:
                    continue
                try:
                    _check_finite(setup, own, member.checkpoints, origin)
                except Diverged as error:
                    if not together:
                        raise
                    ended[i] = error
                    continue
                if inside:
                    continue
                seconds = time.monotonic() - started
                rows.append(_record(member, own, step - before, seconds))
                if epoch == 1 and config.loss.relative_beta:
                    states[i] = own._replace(beta_scale=_relative(rows[-1]))
            if epoch == 1 and inside == 0 and config.loss.relative_beta:
                state = place.join(states)
            going = [(members[i], states[i]) for i in range(count) if i not in ended]
            if not going:
                break
            if inside == 0:
                shown = _shown(rows, (*SHOWN, f"{run.watched[0]}_mse"))
                progress.show(step, shown, new=step - first, final=step == last)
                if _is_pictured(run, step):
                    for member, own in going:
                        _save(member, own)
                        _picture(member.run, own, member.records)
            if stop := max(devices.allgather(stop_signal() or 0)):
                for member, own in going:
                    _save(member, own)
                raise Interrupted(
                    f"stopped in epoch {epoch + (inside > 0)} and saved: "
                    "repeat the command to continue",
                    stop,
                )
    finally:
        progress.close()
    return [ended.get(i, own) for i, own in enumerate(states)]


def _check_joined(run) -> None:
    """Raise a UserError unless runs like this one can be trained together."""
    if run.streamed:
        name = Path(run.dataset.name).name
        raise UserError(f"{name} is streamed from the host: train its runs one by one")
    if run.config.train.debug_nans:
        raise UserError("train.debug_nans looks at one run: train the runs one by one")


def _check_memory(programs, count, mesh) -> None:
    """Raise a UserError if a program takes more memory than a device has."""
    compiled = (p for p in (programs.step, programs.epoch) if isinstance(p, jax.stages.Compiled))
    found = next(compiled, None)  # the rest of an epoch is compiled when it runs
    if not (found and (sizes := found.memory_analysis())):
        return
    needed = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    if jax.default_backend() == "cpu":  # whose devices have one memory
        needed *= mesh.size
    if needed > (there := devices.memory()):
        raise UserError(
            f"{count} runs together take {needed / 1e9:.1f} GB of memory, and there are "
            f"{there / 1e9:.1f}: train fewer together"
        )


def _record(member, state, new, seconds) -> dict[str, float]:
    """The terms of the epoch that ends with a state, as the run's records get them."""
    run, step = member.run, int(state.step)
    row = _averages(state.history, run.setup.steps)
    seen = new * run.config.train.batch_size
    rate = {"seconds": seconds, "images_per_second": seen / seconds}
    with devices.all_or_none():
        if member.records:
            if _is_pictured(run, step):
                row |= _watch(run, state, row["beta"])
            member.records.epoch({"epoch": step // run.setup.steps, "step": step, **row, **rate})
    return row


def _relative(row) -> jax.Array:
    """The factor on β after the first epoch, from the terms of that epoch."""
    if row["regulariser"] == 0.0:
        raise UserError(
            "loss.relative_beta: the regulariser was 0 in the first epoch, and β can't be relative "
            "to that: set loss.relative_beta=False"
        )
    return devices.replicate(jnp.float32(row["mse"] / (row["regulariser"] + 1e-3)))


def _shown(rows, names) -> dict[str, float]:
    """The terms with these names for the progress line, averaged over the runs."""
    return {name: float(np.mean([row[name] for row in rows])) for name in names if name in rows[0]}


def _save(member, state):
    """Save a checkpoint, after syncing the log lines that a resumed run would not write again."""
    run = member.run
    with devices.all_or_none():
        if member.records:
            member.records.sync()
            kept = run.config.train.keep_best
            step = int(state.step)
            there = {*member.checkpoints.steps(), step}
            best = None if kept == "none" else best_step(run.path, kept, there)
            member.checkpoints.save(step, _on_this_process(state), best)


def _is_pictured(run, step) -> bool:
    """Whether a step is one of those with a checkpoint and pictures in TensorBoard."""
    epoch, inside = divmod(step, run.setup.steps)
    train = run.config.train
    return inside == 0 and (epoch % train.checkpoint_every == 0 or epoch == train.epochs)


def _watch(run, state, beta) -> dict[str, float]:
    """The terms of images that are not trained on, at most 10,000, by name."""
    name, images, labels = run.watched
    state = _on_this_process(state).averaged
    if len(images) > evaluation.LARGEST:
        some = np.random.default_rng(0).permutation(len(images))[: evaluation.LARGEST]
        images, labels = jax.tree.map(lambda x: x[np.sort(some)], (images, labels))
    batch_size = whole_batch(run.config.train.batch_size)
    # With default settings, not those of the evaluation, whose fields may change later.
    inference = build_inference(run.setup, run.objective)
    key = keys(run.config.seed)[0]
    try:
        posterior = embed(inference, state, images, batch_size)
        z = jax.jit(type(posterior).sample)(posterior, key)
        found = {"mse": mean_squared_error(inference, state, images, z, batch_size)}
    except UserError:  # the next epoch will say that the run has diverged
        return {}
    terms = inference.terms(state, posterior, key, images, labels)
    found |= {term: float(value) for term, value in terms.items()}
    found["loss"] = found["mse"] + beta * found["regulariser"]
    return {f"{name}_{term}": value for term, value in found.items()}


def _picture(run, state, records):
    """Originals and reconstructions for TensorBoard, if it is the step for that."""
    with devices.all_or_none():
        if not records or not _is_pictured(run, step := int(state.step)):
            return
        averaged = _on_this_process(state).averaged
        pictures = example_images(run.inference, averaged, run.dataset.test_images)
        for name, images in zip(("originals", "reconstructions"), pictures, strict=True):
            records.images(name, np.asarray(images), step)


def _on_this_process(state):
    """A state for evaluation and checkpoints, which one process does alone."""
    return devices.replicate(state, jax.local_devices())


def _shapes(tree):
    leaves, structure = jax.tree.flatten(tree)
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves), structure


@functools.lru_cache(maxsize=8)
def _compiled(programs, objective, state, examples, *, streamed, scan, whole) -> training.Programs:
    """Compile before the clock starts, so that rates and the time left are those of training."""
    objective, state, examples = (
        jax.tree.unflatten(structure, x) for x, structure in (objective, state, examples)
    )
    order = jax.eval_shape(programs.order, state)
    programs = programs._replace(order=programs.order.lower(state).compile())
    if streamed:
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((order.shape[1], *x.shape[1:]), x.dtype), examples
        )
        return programs._replace(batch=programs.batch.lower(objective, state, batch).compile())
    arguments = objective, state, examples, order
    if not scan:
        return programs._replace(step=programs.step.lower(*arguments).compile())
    if whole:
        return programs._replace(epoch=programs.epoch.lower(*arguments).compile())
    return programs


def _steps_in_history(setup, step):
    return (step - 1) % setup.steps + 1 if step else 0


def _averages(history, steps) -> dict[str, float]:
    """Means over the first `steps` steps of the present epoch."""
    history = jax.device_get(history)
    return {name: float(np.mean(row[:steps], dtype=np.float64)) for name, row in history.items()}


def _check_finite(setup, state, checkpoints, origin):
    """Raise Diverged, naming the first bad step, unless all terms and parameters are finite.

    `origin`, if not None, is called to name the operation that caused it.
    """
    step = int(state.step)
    steps = _steps_in_history(setup, step)
    history = {name: np.asarray(row[:steps]) for name, row in state.history.items()}
    bad = np.flatnonzero(~np.isfinite(np.stack(list(history.values()))).all(axis=0))
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
    if not bad.size and finite:
        return
    inside = bad[0] if bad.size else steps - 1
    terms = ", ".join(f"{name} {row[inside]:.4g}" for name, row in history.items())
    kept = checkpoints.steps()
    raise Diverged(
        f"the loss is not finite in epoch {(step - 1) // setup.steps + 1}, "
        f"step {inside + 1} of {setup.steps}: {terms}; "
        + (f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no checkpoint yet")
        + (f"; the first such number: {origin()}" if origin else "")
        + "; a smaller train.learning_rate or loss.beta, or train.gradient_clip, may help"
    )


def _evaluate(run, state, records=None) -> dict:
    tell("evaluating")
    state = _on_this_process(state).averaged
    with Phases() as say:
        with replaced_together(run.path) as new:
            judged = run.config, run.setup, run.inference, state, run.dataset
            found = evaluation.evaluate(*judged, say, run.path / "fits", run.others)
            with writing(run.path):
                write_npz(new / "embeddings.npz", found.arrays)
                posteriors = runs.to_arrays(found.posteriors, int(state.step), run.config)
                write_npz(new / "posteriors.npz", posteriors)
                write_json(new / "metrics.json", found.numbers)
                card = cards.card(run.config, run.setup, state, found.numbers, _about(run))
                write_text(new / "card.md", cards.markdown(card, run.path.name))
        if records:
            records.results(found.numbers, int(state.step))
            records.sync()
        say("drawing")
        with replaced_together(run.path) as new, writing(run.path):
            _draw(new / "figures", run, found)
    tell(report.table(found.numbers, run.dataset.name))
    tell(f"numbers: {run.path / 'metrics.json'}\npictures: {run.path / 'figures'}: see summary.png")
    return found.numbers


def _draw(folder, run, found) -> None:
    """Draw a run's figures, except those whose metrics or labels are missing."""
    config, numbers, arrays = run.config, found.numbers, found.arrays
    footer = (
        f"{Path(run.dataset.name).name}, {config.method.name}, n = {config.model.latent_dim}, "
        f"epoch {numbers['epoch']}, seed {config.seed}, test MSE (sum) {numbers['mse_sum']:.4g}"
        + (f", latents × {scale:g}" if (scale := config.evaluate.latent_scale) != 1.0 else "")
        + (f", without classes {config.data.leave_out}" if config.data.leave_out else "")
    )
    labels = arrays.get("test_labels")
    figures.panels(folder / "summary.png", found.panels, footer)
    between = found.interpolations
    ends = None if labels is None else labels[: 2 * len(between)].reshape(-1, 2)
    figures.interpolations(folder / "interpolations.png", between, footer, ends)
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
            folder / "overlaps.png",
            arrays["overlap_edges"],
            arrays["overlap_counts"],
            footer,
            dimension=config.model.latent_dim,
        )
    if outside := numbers.get("ood"):
        curves = {
            f"against {about['name']}": {
                f"{score}, AUROC {about[score]['auroc']:.3f}": ood.roc(
                    arrays[f"ood_test_{score}"], arrays[f"ood_{source}_{score}"]
                )
                for score in ood.SCORES
            }
            for source, about in outside.items()
        }
        figures.roc(folder / "roc.png", curves, footer)
    if "topology" in numbers:
        figures.topology(folder / "topology.png", numbers["topology"], footer)
    if rows := read_metrics(run.path):
        figures.training_curves(folder / "training.png", rows, footer)


def _describe(run, state) -> str:
    """What is about to run: data, batches, model, device."""
    config, dataset, setup = run.config, run.dataset, run.setup
    count, batch_size = len(dataset.train_images), config.train.batch_size
    repeated = setup.steps * batch_size - count
    height, width, channels = setup.shape
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    number = f"{jax.device_count()} x " if jax.device_count() > 1 else ""
    hosts = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    images = (
        f"{dataset.name}: {count} training images of {height}x{width}x{channels}, "
        f"{setup.steps} batches of {batch_size} an epoch"
        + (f" (the last one filled up with {repeated} seen twice)" if repeated else "")
        + (", streamed from the host" if run.streamed else "")
    )
    model = (
        f"{config.method.name}, n = {config.model.latent_dim}: "
        f"{parameters:,} parameters on {number}{device.device_kind} ({device.platform}){hosts}"
    )
    return f"{fold(images)}\n{fold(model)}"


class _Signals:
    """Record SIGINT and SIGTERM instead of stopping; a second SIGINT interrupts at once."""

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
        part = "epoch" if jax.process_count() > 1 else "step"
        tell(f"\nstopping after this {part}, saving")
        signal.signal(signal.SIGINT, signal.default_int_handler)
