"""Steps a second of several runs in one program, against the runs one after the other.

    python -m benchmarks.together [--quick] [--runs=2,8] [--out=FILE.json]

Each round trains one run alone, on one device, and then all of them together as
`hsjax sweep --together` does: a run on each device, several on each if there
are fewer devices. On a CPU a device is made for each run, and alone a run has
all cores. The images are noise, which costs the same.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.measure import interleave, numbers, parser, progress, ratio, text, write
from hsjax import devices, training
from hsjax.terminal import command, tell

LEGEND = """\
The time of a training step of a run; ratios are the median (quartiles).
  alone      with nothing beside it
  together   with the other runs in one program, over the number of runs
  gain       alone / together: how many times as many runs an hour
"""
TAKES = "It takes about 3 minutes on two cores (--quick: 2)."
SHAPES = {"cifar_compressed": (32, 32, 3), "digits_compressed": (8, 8, 1)}
COUNT = 2000  # images


def stepper(name: str, runs: int, mesh: Mesh, steps: int):
    """A function that trains so many runs, which share a mesh, `steps` steps further."""
    config = importlib.import_module(f"configs.{name}").get_config()
    setup, _ = training.create(config, SHAPES[name], COUNT)
    objective = training.build_objective(config)
    place = devices.Joined(runs, mesh)
    programs = training.compile_programs(setup, COUNT, mesh)
    state = place.join([setup.initial(seed, objective) for seed in range(runs)])
    objective = place.join([objective] * runs)
    images = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPES[name]), dtype=np.uint8)
    examples = place.replicate((jnp.asarray(images), None))
    order = programs.order(state)
    scan = jax.default_backend() != "cpu"
    if scan:
        order = jnp.tile(order, (-(-steps // len(order)), 1, 1))[:steps]
    program = programs.epoch if scan else programs.step
    compiled = program.lower(objective, state, examples, order).compile()

    def run():
        nonlocal state
        for _ in range(1 if scan else steps):
            state = compiled(objective, state, examples, order)
        return state

    return run


def measure(name: str, runs: int, rounds: int, steps: int) -> dict:
    """One row of the table."""
    shared = devices.of_runs(runs)
    alone = Mesh(np.array(jax.devices()[:1]), ("run",))
    functions = {}
    for kind, count, mesh in (("alone", 1, alone), ("together", runs, shared)):
        progress(f"compiling {name}, {count} at once")
        functions[kind] = stepper(name, count, mesh, steps)
    times = interleave(functions, rounds)
    times["together"] /= runs
    return {
        "config": name,
        "runs": runs,
        "devices": shared.size,
        "milliseconds_per_step": {k: 1e3 * float(np.median(v)) / steps for k, v in times.items()},
        "gain": ratio(times["alone"], times["together"]),
    }


@command
def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "together", TAKES, "few rounds")
    flags.add_argument(
        "--runs", type=numbers, default="2,8", metavar="K,...", help="how many (%(default)s)"
    )
    arguments = flags.parse_args()
    devices.start(max(arguments.runs))
    accelerator = jax.default_backend() != "cpu"
    rounds = 30 if accelerator else 4 if arguments.quick else 10
    tell(f"{LEGEND}{TAKES}\n")
    tell(f"{'config':<18}  runs  devices  alone, ms  together, ms  gain")
    rows = []
    for name in SHAPES:
        for runs in arguments.runs:
            steps = 50 if accelerator else 1 if name.startswith("cifar") else 20
            row = measure(name, runs, rounds, steps)
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
