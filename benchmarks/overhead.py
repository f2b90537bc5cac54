"""What the spherical objective adds to a training step, against the dimension n.

    python -m benchmarks.overhead [--quick] [--n=200,1000] [--dtype=bfloat16]
        [--out=FILE.json]

Each round trains the CIFAR10 network for the same number of steps with the
plain KLD (equation 1), and with our spherical objective, one after the other:
a scan of steps on an accelerator, a loop of them on a CPU, as in training. The
paper's n x n mask is timed afterwards, against the median of the KLD. The
images are noise, which costs the same. The projection of z to the sphere counts
as part of the spherical objective. A figure beside the JSON shows the table.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import (
    MASK_LIMIT,
    interleave,
    masked_statistics,
    numbers,
    parser,
    progress,
    ratio,
    text,
    write,
)
from configs import cifar, cifar_compressed
from hsjax import devices, losses, training
from hsjax.figures import BLUE, RED, describe, log_y, new_figure, own_settings, save, subplots
from hsjax.terminal import command, tell

LEGEND = """\
The time of a training step; ratios are the median (quartiles) of rounds.
  standard   with the plain KLD, equation (1)
  spherical  with the spherical objective, as hsjax computes it
  masked     with the spherical objective, by the paper's n x n mask
  paper      spherical / standard, as the paper reports it
"""
TAKES = "It takes about 6 minutes on two cores (--quick: 1)."
PAPER = {200: 1.32}  # time per epoch over the standard VAE's, at batch 200 (section 3)
COUNT = 2000  # images


def masked(hyper, posterior, z, **_):
    """The regulariser of `hsjax.methods.spherical` by the paper's n x n mask."""
    terms = losses.spherical_kl(posterior.mean, posterior.std, hyper, moments=masked_statistics)
    return {"regulariser": losses.total(terms, hyper), **terms._asdict()}


def program(kind: str, n: int, dtype: str, batch: int, steps: int, scan: bool):
    """Initial state, a jitted program of training steps, and its arguments; the state is donated.

    The kind is "spherical", as in the configs, "masked", or a method or setting with a name. With
    scan the program does `steps` steps, otherwise one.
    """
    ours = kind in ("spherical", "masked")
    config = cifar_compressed.get_config() if ours else cifar.get_config(kind)
    config.model.latent_dim, config.model.dtype, config.train.batch_size = n, dtype, batch
    setup, state = training.create(config, (32, 32, 3), COUNT)
    if kind == "masked":
        setup = setup._replace(method=setup.method._replace(regulariser=masked))
    images = jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    )
    programs = training.compile_programs(setup, COUNT)
    order = programs.order(state)
    if scan:
        order = jnp.tile(order, (-(-steps // len(order)), 1))[:steps]
    jitted = programs.epoch if scan else programs.step
    objective = training.build_objective(config)
    return state, jitted, devices.replicate((objective, state, (images, None), order))


def stepper(kind: str, n: int, dtype: str, batch: int, steps: int):
    """A function that trains `steps` steps more each time it is called, and its program."""
    scan = jax.default_backend() != "cpu"
    _, jitted, (numbers, state, images, order) = program(kind, n, dtype, batch, steps, scan)
    compiled = jitted.lower(numbers, state, images, order).compile()

    def run():
        nonlocal state
        for _ in range(1 if scan else steps):
            state = compiled(numbers, state, images, order)
        return state

    return run, compiled


def measure(n: int, dtype: str, batch: int, rounds: int, steps: int) -> dict:
    """One row of the table."""
    kinds = ["standard", "spherical"]
    if 2 * batch * n * n <= MASK_LIMIT:
        kinds.append("masked")
    runs = {}
    for kind in kinds:
        progress(f"compiling {kind}, n = {n}")
        runs[kind] = stepper(kind, n, dtype, batch, steps)
    times = interleave({kind: runs[kind][0] for kind in kinds[:2]}, rounds)
    over = {"spherical": ratio(times["spherical"], times["standard"])}
    if "masked" in kinds:  # later: its gigabytes slow down whatever allocates after it
        times |= interleave({"masked": runs["masked"][0]}, max(3, rounds // 3))
        over["masked"] = ratio(times["masked"], np.median(times["standard"]))
    return {
        "n": n,
        "batch": batch,
        "dtype": dtype,
        "milliseconds_per_step": {k: 1e3 * float(np.median(v)) / steps for k, v in times.items()},
        "over_standard": over,
        "temporary_bytes": {
            k: p.memory_analysis().temp_size_in_bytes for k, (_, p) in runs.items()
        },
    }


@own_settings()
def draw(path: Path, rows: list[dict], device: str) -> None:
    """Time of a step against n, in every form, and what the paper adds to the standard VAE's."""
    figure, body = new_figure(
        3.6,
        f"a whole training step, CIFAR10 network, batch {rows[0]['batch']}, {rows[0]['dtype']}, "
        f"{device}; ratios are medians and quartiles of interleaved rounds",
    )
    (axes,) = subplots(body, 1, 1)
    drawn = []
    for name, label, style in (
        ("masked", "spherical, n × n mask", {"color": RED, "marker": "s", "linestyle": "dashed"}),
        ("standard", "standard VAE", {"color": "0.4", "marker": "^"}),
        ("spherical", "spherical, hsjax", {"color": BLUE, "marker": "o"}),
    ):
        points = []
        for row in (row for row in rows if name in row["milliseconds_per_step"]):
            standard = row["milliseconds_per_step"]["standard"]
            over = row["over_standard"].get(name, dict.fromkeys(("low", "median", "high"), 1.0))
            points.append((row["n"], *(standard * over[k] for k in ("low", "median", "high"))))
        n, low, median, high = map(np.array, zip(*points, strict=True))
        bars = None if name == "standard" else (median - low, high - median)
        axes.errorbar(n, median, bars, label=label, capsize=3, **style)
        drawn += [*low, *high]
    for row in rows:
        if row["n"] in PAPER:
            value = PAPER[row["n"]] * row["milliseconds_per_step"]["standard"]
            axes.plot(row["n"], value, "k*", markersize=11, label="+32 %, as the paper reports")
            drawn.append(value)
    describe(axes, x="latent dimension n", y="ms a step")
    axes.set_xscale("log")
    axes.set_xticks([row["n"] for row in rows], [f"{row['n']:,}" for row in rows])
    axes.minorticks_off()
    log_y(axes, drawn)
    axes.legend(fontsize=9, frameon=False)
    save(figure, path)


@command
def main() -> None:
    """Measure, print, write, draw."""
    flags = parser(__doc__, "overhead", TAKES, "n = 200 and 1000 alone, in few rounds")
    flags.add_argument(
        "--n",
        type=numbers,
        default="50,100,200,400,800,1000,2000,5000,10000",
        help="latent dimensions (%(default)s)",
    )
    flags.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="dtype of the convolutions (%(default)s)",
    )
    flags.add_argument("--batch", type=int, default=200, help="images a step (%(default)s)")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="only draw this earlier JSON")
    arguments = flags.parse_args()
    if arguments.plot:
        found = json.loads(arguments.plot.read_text())
        draw(arguments.plot.with_suffix(".png"), found["rows"], found["device"])
        return
    devices.start()
    sizes = [200, 1000] if arguments.quick else arguments.n
    accelerator = jax.default_backend() != "cpu"
    steps = 50 if accelerator else 1
    rounds = 30 if accelerator else 6 if arguments.quick else 20
    tell(f"{LEGEND}{TAKES}\n")
    tell(
        f"{'n':>6}  {'standard, ms':>12}  {'spherical / standard':>22}  "
        f"{'masked / standard':>22}  paper"
    )
    rows = []
    for n in sizes:
        row = measure(n, arguments.dtype, arguments.batch, rounds, steps)
        rows.append(row)
        over = row["over_standard"]
        masked = text(over["masked"]) if "masked" in over else "too large"
        tell(
            f"{n:>6}  {row['milliseconds_per_step']['standard']:>12.2f}  "
            f"{text(over['spherical']):>22}  {masked:>22}  {PAPER.get(n, '')}".rstrip()
        )
        write(arguments.out, rows, final=False)
    write(arguments.out, rows)
    found = json.loads(arguments.out.read_text())
    draw(arguments.out.with_suffix(".png"), rows, found["device"])


if __name__ == "__main__":
    main()
