"""From the command to the first training step, by stages.

    python -m benchmarks.startup [--quick] [--out=FILE.json]

Every start is a process of its own. It does what main.py does up to the first
step (on an accelerator, the first epoch, which is one program), except writing
the files of the workdir that describe the run.
`cifar_compressed` is that network on 2000 images of noise.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import parser, progress, text, write
from hsjax import data, devices, training
from hsjax.checkpoints import Checkpoints
from hsjax.logs import Records
from hsjax.terminal import command, tell

STAGES = ("import", "data", "initial", "order", "trace", "lower", "compile", "step")
LEGEND = """\
Seconds from the command to the end of the first step: median (quartiles).
  cold    with an empty compilation cache
  warm    with what the cold start before it compiled
Their stages, one after the other:
  import  until everything is imported
  data    the data set on the device, which starts here
  initial initial state, checkpoints, logs: mostly compiling the initial state
  order   compiling what orders an epoch's images
  trace, lower, compile   the program of a step
  step    the first step
"""
TAKES = "It takes about 4 minutes on two cores (--quick: 1)."
CONFIGS = ("digits_compressed", "cifar_compressed")


def first_step(config, load, begin: float) -> dict[str, float]:
    """Train a config up to its first step: the seconds of each stage.

    Args:
      config: of the run.
      load: config -> its data set.
      begin: when the command was given, by time.monotonic.
    """
    seconds = dict.fromkeys(STAGES, 0.0)

    def end(stage):
        seconds[stage] = time.monotonic() - begin - sum(seconds[s] for s in STAGES if s != stage)

    end("import")
    dataset = load(config)
    images = devices.replicate(jax.block_until_ready(jnp.asarray(dataset.train_images)))
    end("data")
    with tempfile.TemporaryDirectory() as workdir:
        path = Path(workdir)
        setup, state = training.create(config, images.shape[1:], len(images))
        with (
            Checkpoints(path / "checkpoints", config.train.checkpoints_kept) as checkpoints,
            Records(path, 0, 0),
        ):
            checkpoints.probe()
            objective, state = devices.replicate((training.build_objective(config), state))
            jax.block_until_ready(state)
            end("initial")
            programs = training.compile_programs(setup, len(images))
            order = programs.order.lower(state).compile()
            arguments = objective, state, (images, None), order(state)
            end("order")
            program = programs.epoch if training.runs_scan(config) else programs.step
            traced = program.trace(*arguments)
            end("trace")
            lowered = traced.lower()
            end("lower")
            compiled = lowered.compile()
            end("compile")
            jax.block_until_ready(compiled(*arguments))
            end("step")
    return seconds


def dataset_of(config) -> data.Dataset:
    """The config's data, or noise in place of what is not bundled."""
    if config.data.name == "digits":
        return data.of_config(config.data)
    images = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    return data.Dataset("noise", images, None, images[:200], None)


def start(name: str, cache: str) -> dict[str, float]:
    """The stages of one start, in a process of its own."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", f"--start={name}", f"--begin={begin}"],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, rounds: int) -> list[dict]:
    """The rows of the table for one config: cold and warm starts, in turn."""
    starts = {"cold": [], "warm": []}
    for done in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind, found in starts.items():
                progress(f"{name}: {kind} start {done + 1} of {rounds}")
                found.append(start(name, cache))
    progress("")
    return [row_of(name, kind, found) for kind, found in starts.items()]


def row_of(name: str, kind: str, starts: list[dict[str, float]]) -> dict:
    """Medians of the stages; median and quartiles of their sum."""
    low, median, high = np.quantile([sum(s.values()) for s in starts], (0.25, 0.5, 0.75))
    return {
        "config": name,
        "start": kind,
        "seconds": {stage: float(np.median([s[stage] for s in starts])) for stage in STAGES},
        "total": {"median": float(median), "low": float(low), "high": float(high)},
        "starts": starts,
    }


@command
def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "startup", TAKES, "two rounds instead of seven")
    flags.add_argument("--start", choices=CONFIGS, help=argparse.SUPPRESS)  # what `start` runs
    flags.add_argument("--begin", type=float, help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    if arguments.start:
        config = importlib.import_module(f"configs.{arguments.start}").get_config()
        print(json.dumps(first_step(config, dataset_of, arguments.begin)))
        return
    tell(f"{LEGEND}{TAKES}\n")
    tell("".join(f"{stage:>9}" for stage in STAGES))
    rows = []
    try:
        for name in CONFIGS:
            for row in measure(name, rounds=2 if arguments.quick else 7):
                rows.append(row)
                tell(f"{name}, {row['start']}: {text(row['total'])} s")
                tell("".join(f"{row['seconds'][stage]:>9.2f}" for stage in STAGES))
    finally:  # only now, since this process takes a device for it, which the starts need
        write(arguments.out, rows, final=False)
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
