"""What each method adds to a training step of the standard VAE.

    python -m benchmarks.methods [--quick] [--n=200] [--out=FILE.json]
        [KIND ...]

Each round trains the CIFAR10 network for the same number of steps with every
method, one after the other: a scan of steps on an accelerator, a loop of them
on a CPU, as in training. The images are noise, which costs the same.
"""

import jax
import numpy as np

from benchmarks.measure import check_kinds, interleave, parser, progress, ratio, text, write
from benchmarks.overhead import stepper
from hsjax import devices
from hsjax.methods import METHODS
from hsjax.terminal import command, tell

LEGEND = """\
The time of a training step; ratios are the median (quartiles) of rounds.
  standard  the standard VAE, with the plain KLD, equation (1)
  kind      a method, or a setting of one
"""
TAKES = "It takes about 4 minutes on two cores (--quick: 3)."
# Settings whose programs differ from their method's.
SETTINGS = ("power_spherical", "wae_rbf", "island", "learned_variance")


def measure(kinds: tuple[str, ...], n: int, batch: int, rounds: int, steps: int) -> list[dict]:
    """The rows of the table; the first kind is what the others are compared with."""
    runs = {}
    for kind in kinds:
        progress(f"compiling {kind}")
        runs[kind] = stepper(kind, n, "float32", batch, steps)
    times = interleave({kind: run for kind, (run, _) in runs.items()}, rounds)
    return [
        {
            "kind": kind,
            "n": n,
            "batch": batch,
            "milliseconds_per_step": 1e3 * float(np.median(times[kind])) / steps,
            "over_standard": ratio(times[kind], times[kinds[0]]),
            "temporary_bytes": runs[kind][1].memory_analysis().temp_size_in_bytes,
        }
        for kind in kinds
    ]


@command
def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "methods", TAKES, "few rounds")
    flags.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        help="methods and settings with names; all methods if not given",
    )
    flags.add_argument("--n", type=int, default=200, help="latent dimension (%(default)s)")
    flags.add_argument("--batch", type=int, default=200, help="images a step (%(default)s)")
    arguments = flags.parse_args()
    devices.start()
    accelerator = jax.default_backend() != "cpu"
    rounds = 5 if arguments.quick else 30 if accelerator else 12
    tell(f"{LEGEND}{TAKES}\n")
    tell(f"{'kind':<20}  {'ms a step':>10}  {'over standard':>22}")
    chosen = check_kinds(arguments.kinds) or [*METHODS, *SETTINGS]
    kinds = "standard", *(kind for kind in chosen if kind != "standard")
    rows = measure(kinds, arguments.n, arguments.batch, rounds, 50 if accelerator else 1)
    for row in rows:
        ms, over = row["milliseconds_per_step"], text(row["over_standard"])
        tell(f"{row['kind']:<20}  {ms:>10.2f}  {over:>22}")
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
