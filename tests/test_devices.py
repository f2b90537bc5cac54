"""A run is the same on one device, on eight, and on two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import digits_compressed, smoke
from hsjax import batches, data, devices, training
from hsjax.checkpoints import Checkpoints
from hsjax.errors import UserError
from hsjax.inference import build_inference
from hsjax.logs import read_metrics

ROOT = Path(__file__).parents[1]


def epoch(*, scan):
    """What an epoch on the digits comes to with the devices there are."""
    config = digits_compressed.get_config()
    config.model.latent_dim, config.model.stages = 8, (4,)
    config.train.batch_size, config.data.flip = 96, True
    config.train.learning_rate = 1e-4  # a higher one amplifies rounding
    dataset = data.load("digits")
    count = len(dataset.train_images)
    setup, state = training.create(config, dataset.train_images.shape[1:], count)
    examples = dataset.train_images, dataset.train_labels
    arguments = devices.replicate((training.build_objective(config), state, examples))
    programs = training.compile_programs(setup, count)
    order = programs.order(arguments[1])
    name = "epoch" if scan else "step"
    program = getattr(programs, name).lower(*arguments, order).compile()
    state = training.train_epoch(programs._replace(**{name: program}), *arguments, scan=scan)
    state = devices.replicate(state, jax.local_devices())
    streamed, _ = next(batches.stream(examples, np.asarray(order)))
    # Eight devices can share the first 96 evenly, and not the last 20.
    images, encode = dataset.test_images[:116], build_inference(setup, arguments[0]).encode
    means = [encode(state, part).mean for part in (images[:96], images[96:])]
    return {
        "devices": jax.device_count(),
        "order": order,
        "streamed": streamed,
        "streamed_rows": len(streamed.addressable_shards[0].data),
        "has_whole_batch": "f32[96,8,8" in program.as_text(),
        "mean": np.concatenate(means),
        **{f"history_{name}": row for name, row in state.history.items()},
    }


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_eight_devices_train_like_one(tmp_path, scan):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    with subprocess.Popen(
        [sys.executable, __file__, tmp_path / "eight.npz", "scan" if scan else "steps"],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
    ) as on_eight:
        one = epoch(scan=scan)
        assert on_eight.wait(timeout=240) == 0
    eight = np.load(tmp_path / "eight.npz")
    assert (one["devices"], eight["devices"]) == (1, 8)
    np.testing.assert_array_equal(one["order"], eight["order"])
    np.testing.assert_array_equal(one["streamed"], eight["streamed"])
    # Every device gets and computes its share only.
    assert (one["streamed_rows"], eight["streamed_rows"]) == (96, 12)
    assert one["has_whole_batch"]
    assert not eight["has_whole_batch"]
    for name in (name for name in one if name.startswith("history")):
        # The same flips and noise; later, Adam amplifies how sums were rounded.
        np.testing.assert_allclose(one[name][:2], eight[name][:2], rtol=1e-5)
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-3)
    np.testing.assert_allclose(one["mean"], eight["mean"], atol=1e-2)


def test_a_batch_that_devices_cannot_share_is_one_line():
    batches.check_divisible(1437, 96, 8)
    for count, size, text in (
        (1437, 100, "batch_size=100 can't be shared evenly by 8 devices: make it 96 or 104, or"),
        (1437, 3, "make it 8, or"),
        (100, 99, "make it 96, or"),
        (5, 4, "by 8 devices: let JAX see fewer"),
    ):
        with pytest.raises(UserError, match=text):
            batches.check_divisible(count, size, 8)


def start(workdir, *arguments):
    return subprocess.Popen(
        [
            *(sys.executable, "main.py", "--config=configs/smoke.py", f"--workdir={workdir}"),
            *("--config.train.learning_rate=1e-4", "--config.evaluate.samplers=()"),
            *("--config.evaluate.features=none", "--config.evaluate.metrics=('knn',)"),
            *arguments,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(workdir, *arguments, of_second=()):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = (*arguments, f"--coordinator={address}", "--processes=2")
    return (
        start(workdir, *common, "--process=0"),
        start(workdir, *common, "--process=1", *of_second),
    )


def ends(*runs):
    """(status, stdout, stderr) of each."""
    try:
        outputs = [run.communicate(timeout=300) for run in runs]
    finally:
        for run in runs:
            run.kill()
    return [(run.returncode, *output) for run, output in zip(runs, outputs, strict=True)]


def signalled(workdir, which, number):
    """`ends` of two processes of a long run, one of which gets a signal after an epoch."""
    epochs = len(read_metrics(workdir))
    runs = start_two(workdir, "--config.train.epochs=100000")
    while len(read_metrics(workdir)) <= epochs and runs[0].poll() is None:
        time.sleep(0.1)
    runs[which].send_signal(number)
    return ends(*runs)


def state_of(workdir):
    images = data.load("digits").train_images
    _, state = training.create(smoke.get_config(), images.shape[1:], len(images))
    with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
        return checkpoints.restore(state)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.0])
def test_two_processes_train_like_one(tmp_path, share):
    (alone,) = ends(start(tmp_path / "one", "--config.train.epochs=3"))
    options = ("--config.train.epochs=3", f"--config.data.device_share={share}")
    first, second = ends(*start_two(tmp_path / "two", *options))
    assert (alone[0], first[0], second[0]) == (0, 0, 0), (alone, first, second)
    assert "on 2 x cpu (cpu), 2 processes" in first[1]
    assert "k-NN accuracy" in first[1]
    assert "digits" not in second[1]
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for row, expected in zip(two, one, strict=True):
        for name in expected.keys() - {"seconds", "images_per_second"}:
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-3)
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two"))
    assert one.keys() == two.keys()
    np.testing.assert_allclose(two["mse_sum"], one["mse_sum"], rtol=1e-3)


@pytest.mark.slow
def test_two_processes_go_on_after_one_is_killed_or_stopped(tmp_path):
    workdir = tmp_path / "stopped"
    for which in (1, 0):
        survivor = signalled(workdir, which, signal.SIGKILL)[1 - which]
        assert survivor[0] not in (0, -signal.SIGKILL)
        # Its own line, unless JAX notices first and aborts.
        if survivor[0] == 1:
            lines = [x for x in survivor[2].splitlines() if x.startswith("error: ")]
            assert len(lines) == 1, survivor
            (line,) = lines
            assert line.endswith("start all of them again to continue")
            assert "Traceback" not in survivor[2]
    stopped = signalled(workdir, 1, signal.SIGTERM)
    assert [end[0] for end in stopped] == [128 + signal.SIGTERM] * 2
    assert "repeat the command to continue" in stopped[0][1]
    rows = read_metrics(workdir)
    last = f"--config.train.epochs={len(rows) + 1}"
    first, second = ends(*start_two(workdir, last))
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert f"continuing {workdir} after epoch {len(rows)}" in first[1]
    assert [end[0] for end in ends(*start_two(tmp_path / "whole", last))] == [0, 0]
    states = state_of(workdir), state_of(tmp_path / "whole")
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_second", "first_line", "second_line"),
    [
        ("--config.loss.beta=2", "differ in config or data", "differ in config or data"),
        ("--config.method.eps=-1", "its own line says why", "method.eps is -1.0"),
        ("--config.data.name=/nowhere.npz", "its own line says why", "/nowhere.npz: no such file"),
    ],
)
def test_processes_that_cannot_start_end_together(tmp_path, of_second, first_line, second_line):
    runs = ends(*start_two(tmp_path / "run", of_second=(of_second,)))
    for (status, _, errors), text in zip(runs, (first_line, second_line), strict=True):
        assert status == 2
        (line,) = (x for x in errors.splitlines() if x.startswith("error: "))
        assert text in line
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("lines", "files", "limits"),
    [
        ("0::/\n", {"memory.max": "1000\n"}, [1000]),  # as a container sees itself
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "70\n"}, [70]),
        ("3:cpu:/x\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "80\n"}, [80]),
        ("4:memory:/elsewhere\n", {"memory/memory.limit_in_bytes": "90\n"}, [90]),
        ("0::/\n", {}, []),
        (None, {}, []),
    ],
)
def test_a_limit_of_a_container_or_batch_system_is_the_memory(tmp_path, lines, files, limits):
    if lines:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(lines)
    for name, content in files.items():
        file = tmp_path / "sys" / "fs" / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert devices._cgroup_limits(tmp_path) == limits
    of_host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < devices.memory() <= of_host


if __name__ == "__main__":
    np.savez(sys.argv[1], **epoch(scan=sys.argv[2] == "scan"))
