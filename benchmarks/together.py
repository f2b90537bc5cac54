"""What several runs in one program gain over the runs one after the other.

    python -m benchmarks.together [--quick] [--runs=8] [--out=FILE.json]

Each round trains one run alone, with all of the machine, and then all of them
together as `hsjax sweep --together` does: a run on each device, several on each
if there are fewer devices. On a CPU each core is a device, and the two are
processes of their own that take turns. The images are noise, which costs the
same.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import interleave, numbers, parser, progress, ratio, text, write
from hsjax import devices, training
from hsjax.terminal import command, tell

LEGEND = """\
The time of a training step of a run; ratios are the median (quartiles).
  alone      with nothing beside it
  together   with the other runs in one program, over the number of runs
  gain       alone / together: how many times as many runs an hour
"""
TAKES = "It takes one to two minutes on two cores (--quick: less)."
SHAPES = {"cifar_compressed": (32, 32, 3), "digits_compressed": (8, 8, 1)}
COUNT = 2000  # images


def stepper(name: str, runs: int, steps: int) -> Callable:
    """A function that trains so many runs for `steps` more steps; a single one as a run alone."""
    config = importlib.import_module(f"configs.{name}").get_config()
    setup, _ = training.create(config, SHAPES[name], COUNT)
    place, mesh = devices.Alone(), None
    if runs > 1:
        mesh = devices.of_runs(runs)
        place = devices.Joined(runs, mesh)
    programs = training.compile_programs(setup, COUNT, mesh)
    objective = training.build_objective(config)
    state = place.join([setup.initial(seed, objective) for seed in range(runs)])
    objective = place.join([objective] * runs)
    images = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPES[name]), dtype=np.uint8)
    examples = place.replicate((jnp.asarray(images), None))
    order = programs.order(state)
    scan = jax.default_backend() != "cpu"
    if scan:
        order = jnp.concatenate([order] * (-(-steps // len(order))))[:steps]
    program = programs.epoch if scan else programs.step
    compiled = program.lower(objective, state, examples, order).compile()

    def run():
        nonlocal state
        for _ in range(1 if scan else steps):
            state = compiled(objective, state, examples, order)
        return state

    return run


def work(name: str, runs: int, steps: int) -> None:
    """In its own process: do a turn for each line that comes in, then answer with a line."""
    devices.start(runs)
    run = stepper(name, runs, steps)
    print(flush=True)
    for _ in sys.stdin:
        jax.block_until_ready(run())
        print(flush=True)


@contextmanager
def turns(name: str, runs: int, steps: int) -> Iterator[Callable]:
    """`stepper`, on a CPU in a process of its own: the number of devices changes its threads."""
    progress(f"compiling {name}, {runs} at once")
    if jax.default_backend() != "cpu":
        yield stepper(name, runs, steps)
        return
    given = [f"--worker={name}", f"--runs={runs}", f"--steps={steps}"]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.together", *given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one
    ) as process:

        def turn():
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()

        try:
            process.stdout.readline()
            yield turn
        finally:
            process.kill()


def measure(name: str, runs: int, rounds: int) -> dict:
    """One row of the table."""
    on_cpu = jax.default_backend() == "cpu"
    steps = 50 if not on_cpu else 1 if name.startswith("cifar") else 20
    with turns(name, 1, steps) as alone, turns(name, runs, steps) as together:
        times = interleave({"alone": alone, "together": together}, rounds)
    times["together"] /= runs
    return {
        "config": name,
        "runs": runs,
        "devices": runs if on_cpu else devices.of_runs(runs).size,
        "milliseconds_per_step": {k: 1e3 * float(np.median(v)) / steps for k, v in times.items()},
        "gain": ratio(times["alone"], times["together"]),
    }


@command
def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "together", TAKES, "fewer rounds")
    flags.add_argument(
        "--runs",
        type=numbers,
        metavar="K,...",
        help="numbers of runs (as many as the CPU has cores; on other devices 2,8)",
    )
    flags.add_argument("--worker", choices=SHAPES, help=argparse.SUPPRESS)  # what `turns` starts
    flags.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.runs[0], arguments.steps)
        return
    rounds = 4 if arguments.quick else 20
    devices.start()
    on_cpu = jax.default_backend() == "cpu"
    numbers_of_runs = arguments.runs or ([devices.cores()] if on_cpu else [2, 8])
    tell(f"{LEGEND}{TAKES}\n")
    tell(f"{'config':<18}  runs  devices  alone, ms  together, ms  gain")
    rows = []
    for name in SHAPES:
        for runs in numbers_of_runs:
            row = measure(name, runs, rounds)
            rows.append(row)
            ms = row["milliseconds_per_step"]
            tell(
                f"{name:<18}  {runs:>4}  {row['devices']:>7}  {ms['alone']:>9.2f}  "
                f"{ms['together']:>12.2f}  {text(row['gain'])}"
            )
            write(arguments.out, rows, final=False)
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
