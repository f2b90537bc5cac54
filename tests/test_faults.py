"""Killed, out of disk, damaged or started twice, a run loses nothing and says what happened."""

import contextlib
import dataclasses
import fcntl
import gc
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import of_judgement, tiny_config
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from test_devices import ends, start_two

from configs import smoke
from hsjax import data, debug, experiment, figures, files, losses, posteriors, training
from hsjax.checkpoints import Checkpoints
from hsjax.config import method_fields
from hsjax.errors import UserError
from hsjax.logs import Records, read_metrics

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "images_per_second")


# Kills of whole runs.

# A command that kills itself before the count-th event of a kind whose arguments are of a pattern.
KILLED = """
import os, re, runpy, signal, sys
event, pattern, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
def hook(name, arguments):
    global count
    if name == event and re.search(pattern, str(arguments)):
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[4:]
sys.path[0] = os.getcwd()
sys.addaudithook(hook)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Run:
    """A run of short epochs, a checkpoint each, to be killed."""

    def __init__(self, images_file, workdir, epochs):
        self.workdir = workdir
        self.config = smoke.get_config()
        fields = {
            **{"data.name": str(images_file), "train.epochs": epochs, "train.batch_size": 8},
            **{"model.latent_dim": 4, "model.stages": (2,)},
            **{"evaluate.samplers": (), "evaluate.metrics": ("knn",)},
        }
        self.config.update_from_flattened_dict(fields)
        self.command = ["main.py", "--config=configs/smoke.py", f"--workdir={workdir}"]
        self.command += [f"--config.{field}={value}" for field, value in fields.items()]

    def start(self, *killed_at, more=()):
        before = ["-c", KILLED, *map(str, killed_at)] if killed_at else []
        return subprocess.Popen(
            [sys.executable, *before, *self.command, *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What it compiles it doesn't keep: a kill would leave half of a program.
            env=os.environ
            | {"PYTHONUNBUFFERED": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"},
        )

    def finish(self, *more):
        with self.start(more=more) as process:
            output, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == (0, "")
        return output

    def killed_at(self, event, pattern, count=1):
        """Kill it at that operation on files."""
        with self.start(event, pattern, count) as process:
            self._was_killed(process)

    def killed_after(self, seconds, appears=lambda: True):
        """Kill it so long after something can be seen."""
        with self.start() as process:
            while not appears() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(seconds)
            process.kill()
            self._was_killed(process)

    def _was_killed(self, process):
        _, errors = process.communicate(timeout=240)
        # Nothing of the kill before it looks like damage.
        assert (process.returncode, errors) == (-signal.SIGKILL, "")
        rows = [row["epoch"] for row in read_metrics(self.workdir)]
        assert rows == list(range(1, len(rows) + 1))

    def grows(self, name):
        """Whether a file or folder of the workdir will have changed since now."""
        path = self.workdir / name

        def state():
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_mtime_ns, path.stat().st_size

        before = state()
        return lambda: state() not in (before, None)

    def has(self, name):
        """Whether a file or folder of the workdir will be there."""
        return (self.workdir / name).exists


def assert_ends_as(run, undisturbed):
    """The same parameters bit by bit, and the same numbers but for times."""
    images = data.load(run.config.data.name).train_images
    _, like = training.create(run.config, images.shape[1:], len(images))
    states = []
    for workdir in (run.workdir, undisturbed):
        with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
            states.append(checkpoints.restore(like))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_times(run.workdir) == without_times(undisturbed)
    assert shown_by_tensorboard(run.workdir) == shown_by_tensorboard(undisturbed)
    for name in ("metrics.json", "config.json", "parameters.txt"):
        assert (run.workdir / name).read_text() == (undisturbed / name).read_text()
    names = [sorted(os.listdir(workdir / "figures")) for workdir in (run.workdir, undisturbed)]
    assert names[0] == names[1]
    assert sorted(os.listdir(run.workdir)) == sorted(os.listdir(undisturbed))  # nothing is left


def shown_by_tensorboard(workdir):
    """The values and pictures that TensorBoard shows, by name and step, but for times."""
    shown = {}
    for file in sorted((workdir / "tensorboard").iterdir()):
        content = file.read_bytes()
        while len(content) >= 12:
            length = int.from_bytes(content[:8], "little")
            event, checksum = content[12 : 12 + length], content[12 + length : 16 + length]
            content = content[16 + length :]
            if len(checksum) < 4:  # a kill cut it off
                break
            assert masked_crc32c(event) == int.from_bytes(checksum, "little")
            event = Event.FromString(event)
            if event.HasField("session_log"):  # a restart, which hides what is of later steps
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.tag.rpartition("/")[2] not in TIMES:
                    assert (value.tag, event.step) not in shown
                    content_of = value.image.encoded_image_string or value.simple_value
                    shown[value.tag, event.step] = content_of
    return shown


def without_times(workdir):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(workdir)]


@pytest.mark.slow
def test_a_run_killed_twice_ends_as_if_it_had_not_been(images_file, tmp_path):
    run = Run(images_file, tmp_path / "run", 5)
    experiment.train_and_evaluate(run.config, tmp_path / "undisturbed")
    run.killed_at("os.rename", r"/\.unfinished-\w+'", 3)  # all written but for its name
    run.killed_at("os.rename", r"\.finished/metrics\.json")  # embeddings.npz is new already
    assert f"continuing {run.workdir} after epoch 5" in run.finish()
    assert_ends_as(run, tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_run_killed_over_and_over_ends_as_if_it_had_not_been(images_file, tmp_path):
    epochs, chance = 60, random.Random(0)
    undisturbed = Run(images_file, tmp_path / "undisturbed", epochs)
    started = time.monotonic()
    undisturbed.finish()
    whole = time.monotonic() - started
    run = Run(images_file, tmp_path / "run", epochs)
    for _ in range(6):  # while it starts, mostly
        run.killed_after(chance.uniform(0, whole / 3))
    for event, pattern, count in (
        ("os.mkdir", r"/\.unfinished-\w+/default", 2),
        ("open", r"metrics\.jsonl", 5),
        ("open", r"sha256\.json", 2),
        ("os.rename", r"/\.unfinished-\w+'", 2),
        ("os.rename", r"checkpoints/\.old", 2),
        ("os.rmdir", r"ocdbt\.process_0", 2),  # the old one is half removed
    ):
        run.killed_at(event, pattern, count)
    for _ in range(5):
        run.killed_after(chance.uniform(0, 0.1), run.grows("checkpoints"))
    for _ in range(5):
        run.killed_after(chance.uniform(0, 0.1), run.grows("metrics.jsonl"))
    assert len(read_metrics(run.workdir)) < epochs
    run.killed_at("os.mkdir", r"run/\.unfinished'")
    for _ in range(4):  # while it evaluates
        run.killed_after(chance.uniform(0, 2.0), run.has(".unfinished"))
    for event, pattern in (
        ("open", r"summary\.png"),
        ("os.rename", r"run/\.unfinished'"),
        ("os.rename", r"\.finished/figures"),
    ):
        run.killed_at(event, pattern)
    run.finish()
    assert_ends_as(run, undisturbed.workdir)
    run.killed_at("os.rename", r"\.finished/figures")  # the old ones are out of the way
    assert not (run.workdir / "figures").exists()
    run.finish("--mode=evaluate")
    assert_ends_as(run, undisturbed.workdir)


# Kills at every single operation on files, of the parts that write them.

OPERATIONS = "open os.rename os.mkdir os.remove os.rmdir os.truncate os.listdir os.scandir".split()


def tree(value):
    return {"a": np.full((300, 7), value, np.float32), "b": np.int32(value)}


def save(step, folder):
    with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(step, tree(step))


def write_results(text, folder):
    """figures/ of `text` and of all, and two files."""
    with files.replaced_together(folder) as new:
        (new / "figures").mkdir()
        for name in ("of_all.png", f"of_{text}.png"):
            (new / "figures" / name).write_text(text)
        files.write_npz(new / "embeddings.npz", {"text": np.array(text)})
        files.write_json(new / "metrics.json", {"text": text})


def results(folder):
    """Which texts the results in a folder are of."""
    found = {json.loads((folder / "metrics.json").read_text())["text"]}
    found |= {str(np.load(folder / "embeddings.npz")["text"])}
    found |= {path.read_text() for path in (folder / "figures").iterdir()}
    found |= {path.stem[3:] for path in (folder / "figures").iterdir() if "all" not in path.name}
    return found


def row(epoch):
    return {"epoch": epoch, "step": 6 * epoch, "loss": 1 / epoch}


def write_rows(first, last, folder):
    with Records(folder, first - 1, 6 * (first - 1)) as records:
        for epoch in range(first, last + 1):
            records.epoch(row(epoch))
        records.sync()


PARTS = {
    "checkpoint": ((save, 1), (save, 2), (save, 3)),
    "results": ((write_results, "old"), (write_results, "new")),
    "rows": ((write_rows, 1, 4), (write_rows, 4, 5)),
}


def enumerate_kills(before, act, folder):
    """Kill `act` in copies of `before`: folder/0 at its first operation, folder/1 at its second."""
    for count in itertools.count():
        work = folder / str(count)
        shutil.copytree(before, work)
        child = os.fork()
        if child == 0:
            sys.addaudithook(kill_at(count, str(work)))
            act[0](*act[1:], work)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            shutil.rmtree(work)
            return
        assert status == -signal.SIGKILL


def kill_at(count, folder):
    """A hook for the count-th operation in a folder; a relative path is one within it."""

    def hook(name, arguments):
        nonlocal count
        if name in OPERATIONS and (
            folder in str(arguments) or not os.path.isabs(str(arguments[0]))
        ):
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            count -= 1

    return hook


def killed_everywhere(part, folder):
    """Folders that each hold what a part, killed at one of its operations, left."""
    command = [sys.executable, __file__, part, folder]  # forks, so it has to be without threads
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    return sorted((folder / "killed").iterdir(), key=lambda path: int(path.name))


def main(part, folder):
    *earlier, last = PARTS[part]
    (folder / "before").mkdir()
    child = os.fork()
    if child == 0:
        for act, *arguments in earlier:
            act(*arguments, folder / "before")
        os._exit(0)
    os.waitpid(child, 0)
    enumerate_kills(folder / "before", last, folder / "killed")
    for killed in (folder / "killed").iterdir():
        if (killed / ".finished").exists():
            enumerate_kills(killed, (files.recover,), folder / "again" / killed.name)


@pytest.mark.slow
def test_a_checkpoint_killed_anywhere_leaves_the_last_or_the_new_one(tmp_path, caplog):
    folders = killed_everywhere("checkpoint", tmp_path)
    assert len(folders) > 50
    newest = []
    for folder in folders:
        with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
            newest.append(checkpoints.steps()[-1])
            for expected in (newest[-1], 3):
                restored = checkpoints.restore(tree(0))
                for name, value in tree(expected).items():
                    np.testing.assert_array_equal(restored[name], value)
                checkpoints.save(3, tree(3))
            checkpoints.save(4, tree(4))
        assert sorted(os.listdir(folder / "checkpoints")) == ["3", "4"]
    assert newest == sorted(newest)
    assert set(newest) == {2, 3}
    assert not caplog.text


def test_results_killed_anywhere_are_the_old_or_the_new_ones(tmp_path):
    folders = killed_everywhere("results", tmp_path)
    twice = [path for path in tmp_path.glob("again/*/*")]
    assert len(folders) > 20
    assert len(twice) > 20
    for folder in twice:
        files.recover(folder)
        assert results(folder) == {"new"}
    found = []
    for folder in folders:
        json.loads((folder / "metrics.json").read_text())  # whole even before it is
        files.recover(folder)
        (text,) = results(folder)
        found.append(text)
        assert not list(folder.glob(".*"))
    assert found == sorted(found, reverse=True)
    assert set(found) == {"old", "new"}


def test_metrics_killed_anywhere_keep_their_rows(tmp_path, caplog):
    folders = killed_everywhere("rows", tmp_path)
    for folder in folders:
        rows = read_metrics(folder)
        assert rows in ([row(i) for i in range(1, n + 1)] for n in (3, 4, 5))
        write_rows(4, 5, folder)
        assert read_metrics(folder) == [row(i) for i in range(1, 6)]
    assert not caplog.text


def test_a_clock_that_is_set_back_hides_nothing(tmp_path, monkeypatch):
    now = time.time()
    for first, clock in ((1, now), (2, now - 3600), (3, now - 10**6), (4, now)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        write_rows(first, first, tmp_path)
    shown = shown_by_tensorboard(tmp_path)
    assert sorted({step for _, step in shown}) == [6, 12, 18, 24]


def test_what_a_kill_kept_from_tensorboard_comes_with_the_next_start(tmp_path):
    """A row is on the disk, its scalars and pictures are not."""
    write_rows(1, 2, tmp_path)
    undisturbed = shown_by_tensorboard(tmp_path)
    (last,) = (tmp_path / "tensorboard").iterdir()
    last.write_bytes(last.read_bytes()[:-20])
    assert shown_by_tensorboard(tmp_path) != undisturbed
    with Records(tmp_path, 2, 12):
        pass
    assert shown_by_tensorboard(tmp_path) == undisturbed


# No room, and no right to write.


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk):
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def fill_at(monkeypatch, disk, owner, name, call):
    """Leave no room when a function is called for the call-th time."""
    real, calls = getattr(owner, name), []

    def filling(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            fill(disk)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, filling)


@pytest.fixture(scope="module")
def whole(images_file, tmp_path_factory):
    """The numbers and rows of a run with all the room it needs, and its workdir."""
    workdir = tmp_path_factory.mktemp("whole")
    numbers = experiment.train_and_evaluate(short(images_file), workdir)
    return numbers, without_times(workdir), workdir


def short(images_file):
    """Of 24 epochs, whose rows fill more than a page of the disk; a checkpoint after the 12th."""
    config = tiny_config(images_file)
    config.method, config.model.stages = method_fields("standard"), (2,)
    config.train.epochs, config.train.checkpoint_every = 24, 12
    config.evaluate.samplers, config.evaluate.metrics = (), ("knn",)
    return config


@pytest.fixture
def undrawn(monkeypatch):
    """Figures, which take half of the time, left out."""
    monkeypatch.setattr(experiment, "_draw", lambda *_: None)


@pytest.mark.parametrize(
    ("owner", "name", "call", "failing", "kept"),
    [
        (None, None, None, "workdir {disk}/run", []),
        (experiment, "write_json", 1, "{disk}/run", []),
        (Checkpoints, "save", 2, "{disk}/run/checkpoints", [72]),
        (Records, "epoch", 13, "{disk}/run/metrics.jsonl", [72]),
        (experiment, "write_json", 3, "{disk}/run", [72, 144]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (Checkpoints, "save", 1, "{disk}/run/checkpoints", []),
                (Records, "epoch", 1, "{disk}/run/metrics.jsonl", []),
                (experiment, "write_npz", 1, "{disk}/run", [72, 144]),
            )
        ),
    ],
)
def test_a_full_disk_is_one_line_and_loses_nothing(
    images_file, disk, whole, undrawn, monkeypatch, capfd, owner, name, call, failing, kept
):
    config, workdir = short(images_file), disk / "run"
    with monkeypatch.context() as patch:
        if owner:
            fill_at(patch, disk, owner, name, call)
        else:
            fill(disk)
        with pytest.raises(UserError) as caught:
            experiment.train_and_evaluate(config, workdir)
    message = str(caught.value)
    assert message.startswith(f"{failing.format(disk=disk)} can't be written (No space left on ")
    assert "\n" not in message
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    left = workdir / "checkpoints"
    assert sorted(map(int, os.listdir(left) if left.exists() else ())) == kept
    assert not list(workdir.glob(".*"))
    (disk / "filler").unlink()
    assert experiment.train_and_evaluate(config, workdir) == whole[0]
    assert without_times(workdir) == whole[1]
    assert ("continuing" in capfd.readouterr().out) == bool(kept)


def test_many_arrays_on_a_full_disk_are_as_quiet_as_few(disk, capfd):
    """Each array of a checkpoint is written by itself, and fails by itself."""
    many = {str(i): np.random.default_rng(i).random((300, 20)) for i in range(300)}
    with Checkpoints(disk / "checkpoints", 3) as checkpoints:
        checkpoints.save(1, tree(1))
        for _ in range(2):
            with pytest.raises(UserError, match=r"can't be written \(No space left on device\)"):
                checkpoints.save(2, many)
            assert checkpoints.steps() == [1]
        checkpoints.save(3, tree(3))
        np.testing.assert_array_equal(checkpoints.restore(tree(0))["a"], tree(3)["a"])
    assert not capfd.readouterr().err


@pytest.mark.parametrize("inodes", [4, 18, 30])
def test_no_files_left_is_told_like_no_bytes_left(images_file, disk, undrawn, capfd, inodes):
    """Before the config, in the probe, and in the first checkpoint."""
    config = short(images_file)
    config.train.epochs = 1
    subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes}", str(disk)], check=True)
    with pytest.raises(UserError, match="can't be written \\(No space left on device\\)"):
        experiment.train_and_evaluate(config, disk / "run")
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err
    assert not list((disk / "run").glob("checkpoints/[0-9]*"))


def test_a_full_disk_keeps_an_earlier_evaluation(images_file, disk, whole, monkeypatch):
    config = short(images_file)
    workdir = shutil.copytree(whole[2], disk / whole[2].name)  # the card has its name
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    for owner, name, call in (
        (figures, "panels", 1),
        (experiment, "write_npz", 1),
        (experiment, "write_json", 1),
    ):
        with monkeypatch.context() as patch:
            fill_at(patch, disk, owner, name, call)
            with pytest.raises(UserError, match="can't be written \\(No space left on device"):
                experiment.evaluate(workdir, of_judgement(config))
        (disk / "filler").unlink()
        assert before == {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}


def test_a_run_goes_on_without_tensorboard(
    images_file, disk, whole, undrawn, tmp_path, caplog, monkeypatch
):
    """However much there'd be to write: its own thread, if it had one, would end."""
    config, workdir = short(images_file), tmp_path / "run"
    workdir.mkdir()
    (workdir / "tensorboard").symlink_to(disk)
    fill_at(monkeypatch, disk, Records, "epoch", 3)
    assert experiment.train_and_evaluate(config, workdir) == whole[0]
    assert without_times(workdir) == whole[1]
    (warning,) = caplog.messages
    text = f"{workdir}/tensorboard can't be written (No space left on device): going on without"
    assert warning.startswith(text)


def test_a_workdir_that_is_read_only_is_one_line(images_file, disk, whole):
    workdir = shutil.copytree(whole[2], disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for act in (
        lambda: experiment.train_and_evaluate(short(images_file), workdir),
        lambda: experiment.evaluate(workdir),
    ):
        with pytest.raises(UserError, match="can't be written \\(Read-only file system"):
            act()


def test_a_disk_that_becomes_read_only_is_one_line(
    images_file, whole, undrawn, tmp_path, monkeypatch
):
    """The error is made up: while a run has files open, no disk can be made read-only."""
    config = short(images_file)

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", read_only)
        with pytest.raises(UserError, match=r"can't be written \(Read-only file system\)"):
            experiment.train_and_evaluate(config, tmp_path)
    assert experiment.train_and_evaluate(config, tmp_path) == whole[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_output_that_is_full_is_one_line(images_file, tmp_path):
    run = Run(images_file, tmp_path / "run", 2)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *run.command], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    text = "error: the output can't be written (No space left on device): repeat the command"
    assert done.stderr.startswith(text)
    assert (done.stderr.count("\n"), done.returncode) == (1, 2)


# Damaged files.


@pytest.fixture
def trained(whole, images_file, tmp_path):
    """A config and a workdir of half its epochs."""
    workdir = shutil.copytree(whole[2], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "144")
    rows = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(rows[:12]))
    return short(images_file), workdir


@pytest.mark.parametrize(
    ("damage", "line", "lost"),
    [
        (lambda lines: [*lines[:4], lines[4][:30] + b"\xff" + lines[4][31:], *lines[5:]], 5, [5]),
        (lambda lines: [*lines[:4], lines[4].replace(b"{", b"[", 1), *lines[5:]], 5, [5]),
        (lambda lines: [*lines[:4], lines[4].replace(b'"step"', b'"stup"'), *lines[5:]], 5, [5]),
        (lambda lines: [*lines[:4], lines[4].replace(b'h": 5', b'h": 7'), *lines[5:]], 5, [5]),
        (lambda lines: [*lines[:11], lines[11][:40]], 12, [12]),
        (lambda lines: [b"\0" * 500], 1, list(range(1, 13))),
        (lambda lines: [*lines[:9]], None, [10, 11, 12]),
    ],
    ids=["not utf-8", "no object", "no step", "another epoch", "cut off", "zeros", "shortened"],
)
def test_damaged_metrics_keep_their_other_rows_and_a_copy(
    trained, whole, undrawn, caplog, damage, line, lost
):
    config, workdir = trained
    path = workdir / "metrics.jsonl"
    damaged = b"".join(damage(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(damaged)
    assert experiment.train_and_evaluate(config, workdir) == whole[0]
    assert without_times(workdir) == [row for row in whole[1] if row["epoch"] not in lost]
    (warning,) = caplog.messages
    shown = ", ".join(map(str, lost[:5])) + ", ..." * (len(lost) > 5)
    if line is None:
        assert warning == f"{path} lacks epoch {shown}: going on without"
    else:
        start = f"{path} lacks epoch {shown} (line {line} is damaged): going on without; "
        assert warning == f"{start}the file as it was is now metrics.jsonl-damaged-1"
        assert (workdir / "metrics.jsonl-damaged-1").read_bytes() == damaged


def test_a_damaged_config_is_one_line_and_keeps_the_run(trained, whole, undrawn):
    config, workdir = trained
    path = workdir / "config.json"
    good = path.read_text()
    for damaged in ("", good[:100], "[]", "null", good.replace("{", "\0", 1)):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"config.json is damaged: bring a good copy back"):
            experiment.train_and_evaluate(config, workdir)
        assert path.read_text() == damaged
    path.write_bytes(b"\xff" + good.encode())
    with pytest.raises(UserError, match=r"config.json is damaged"):
        experiment.evaluate(workdir, of_judgement(config))
    path.unlink()
    assert experiment.train_and_evaluate(config, workdir) == whole[0]


def test_damaged_results_are_written_anew(trained, whole):
    config, workdir = trained
    for name in ("metrics.json", "embeddings.npz", "figures/summary.png"):
        path = workdir / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert experiment.train_and_evaluate(config, workdir) == whole[0]
    assert json.loads((workdir / "metrics.json").read_text()) == whole[0]
    assert np.load(workdir / "embeddings.npz")["test_mean"].shape == (12, 4)


# Two runs at once.


def test_a_workdir_in_use_is_refused_until_its_user_is_killed(
    images_file, whole, undrawn, tmp_path
):
    code = "import sys, time; from hsjax import files; from pathlib import Path\n"
    code += "with files.locked(Path(sys.argv[1])): print(flush=True); time.sleep(1000)"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE
    ) as user:
        user.stdout.readline()
        (tmp_path / "checkpoints").mkdir()
        shutil.copy(whole[2] / "config.json", tmp_path)
        for act in (
            lambda: experiment.train_and_evaluate(short(images_file), tmp_path),
            lambda: experiment.evaluate(tmp_path),
        ):
            with pytest.raises(UserError) as caught:
                act()
            start = f"workdir {tmp_path} is in use by process {user.pid} on {os.uname().nodename}: "
            assert str(caught.value).startswith(start)
        assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints", "config.json"]
        user.kill()
    assert experiment.train_and_evaluate(short(images_file), tmp_path) == whole[0]
    assert not (tmp_path / ".lock").exists()


def test_where_files_cannot_be_locked_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with files.locked(tmp_path):
        pass
    (warning,) = caplog.messages
    text = f"workdir {tmp_path} can't be locked (Operation not supported): start no second run"
    assert warning.startswith(text)
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_second_command_leaves_the_first_undisturbed(images_file, tmp_path):
    undisturbed = Run(images_file, tmp_path / "undisturbed", 60)
    undisturbed.finish()
    run = Run(images_file, tmp_path / "run", 60)
    with run.start() as first:
        while not run.has("checkpoints")():
            time.sleep(0.01)
        for more in ((), ("--mode=evaluate",)):
            with run.start(more=more) as second:
                _, errors = second.communicate(timeout=240)
            text = f"error: workdir {run.workdir} is in use by process {first.pid} on "
            assert errors.startswith(text)
            assert (errors.count("\n"), second.returncode) == (1, 2)
        _, errors = first.communicate(timeout=240)
    assert (first.returncode, errors) == (0, "")
    assert_ends_as(run, undisturbed.workdir)


@pytest.mark.slow
def test_two_processes_end_together_when_the_first_one_cannot_go_on(tmp_path, disk):
    with files.locked(tmp_path / "used"):
        first, second = ends(*start_two(tmp_path / "used"))
    refused = f"error: workdir {tmp_path / 'used'} is in use by process {os.getpid()} on "
    full = f"error: {disk / 'run'}/"
    runs = start_two(disk / "run", "--config.train.epochs=100000")
    while len(read_metrics(disk / "run")) < 2 and runs[0].poll() is None:
        time.sleep(0.1)
    fill(disk)
    for (status, _, errors), text in (
        (first, refused),
        (second, other := "error: another process of the run could not go on: its own line says"),
        *zip(ends(*runs), (full, other), strict=True),
    ):
        assert status == 2
        (line,) = (x for x in errors.splitlines() if not x.startswith("W"))
        assert line.startswith(text)


# Numbers that stop being finite.


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.0])
def test_debug_nans_names_the_operation_that_overflowed(images_file, tmp_path, share):
    config = short(images_file)
    config.data.device_share = share
    config.train.learning_rate, config.train.debug_nans = 1e3, True
    with pytest.raises(experiment.Diverged) as caught:
        experiment.train_and_evaluate(config, tmp_path)
    where = line_of(posteriors, "return jnp.exp(0.5 * self.log_variance")
    text = f"; the first such number: step 2: invalid value (inf) encountered in exp at {where}; a "
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def line_of(module, text):
    """Where a line that begins so stands, as in hsjax/models.py:24."""
    file = Path(module.__file__)
    lines = enumerate(file.read_text().splitlines(), 1)
    (number,) = (i for i, line in lines if line.strip().startswith(text))
    return f"{file.relative_to(ROOT)}:{number}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "module", "text", "operation"),
    [
        (
            "mean_gain",
            np.nan,
            losses,
            "location = spec.mean_gain * (average",
            "nan) encountered in mul",
        ),
        ("variance_eps", -9.0, losses, "spread = jnp.sqrt(variance", "nan) encountered in sqrt"),
        (None, None, training, "mse = losses.squared_error(images", "inf) encountered in div"),
    ],
)
def test_the_origin_of_a_number_that_is_not_finite(
    config, monkeypatch, field, value, module, text, operation
):
    """The last case is finite until it is differentiated."""
    dataset = data.load(config.data.name)
    count = len(dataset.train_images)
    run, state = training.create(config, dataset.train_images.shape[1:], count)
    objective = training.build_objective(config)
    if field:
        changed = jnp.full_like(getattr(objective.hyper, field), value)
        objective = objective._replace(
            hyper=dataclasses.replace(objective.hyper, **{field: changed})
        )
    else:
        plain = losses.squared_error
        monkeypatch.setattr(
            losses, "squared_error", lambda x, y: plain(x, y) + jnp.sqrt(jnp.sum(y * 0))
        )
    programs, images = training.compile_programs(run, count), jnp.asarray(dataset.train_images)
    found = debug.first_not_finite(programs, objective, state, (images, None))
    assert found == f"step 1: invalid value ({operation} at {line_of(module, text)}"
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))  # and still there


def test_debug_nans_may_be_switched_on_later_and_changes_nothing(trained, whole, undrawn):
    config, workdir = trained
    config.train.debug_nans = True
    assert experiment.train_and_evaluate(config, workdir) == whole[0]
    assert without_times(workdir) == whole[1]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
