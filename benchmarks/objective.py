"""What the spherical objective costs alone, against the latent dimension n.

    python -m benchmarks.objective [--quick] [--out=FILE.json]

Times its value and gradient in three ways that give the same numbers. The
floor is the time to copy 8·B·n bytes (8·B·n read, 8·B·n written), B the batch:
μ and σ read once, their gradients written once.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.measure import (
    MASK_LIMIT,
    cumulative_statistics,
    interleave,
    masked_statistics,
    parser,
    ratio,
    text,
    write,
)
from hsjax import devices, losses, statistics
from hsjax.terminal import command, tell

LEGEND = """\
The objective's value and gradient; ratios are the median (quartiles) of rounds.
  ours      as hsjax computes it, with a derivative in closed form
  autodiff  as a running sum that JAX differentiates
  masked    with the paper's n x n mask, which JAX differentiates
  floor     the time to copy the bytes that each of them must read and write
"""
TAKES = "It takes about 4 minutes on two cores (--quick: 1)."


def objective(moments, spec, mean, std):
    """Value of the regulariser with this form of the batch statistics."""
    return losses.total(losses.spherical_kl(mean, std, spec, moments=moments), spec)


def measure(batch: int, n: int, rounds: int) -> dict:
    """One row of the table."""
    keys = jax.random.split(jax.random.key(0))
    mean = jax.random.normal(keys[0], (batch, n))
    std = jnp.exp(0.1 * jax.random.normal(keys[1], (batch, n)))
    spec = losses.paper_spec(n)
    forms = {"ours": statistics.coordinate_moments, "autodiff": cumulative_statistics}
    if 2 * batch * n * n <= MASK_LIMIT:
        forms["masked"] = masked_statistics
    functions, memory = {}, {}
    for name, form in forms.items():
        value = partial(objective, form)
        for part, function in (
            ("value", value),
            ("gradient", jax.value_and_grad(value, argnums=(1, 2))),
        ):
            compiled = jax.jit(function).lower(spec, mean, std).compile()
            memory[f"{name} {part}"] = compiled.memory_analysis().temp_size_in_bytes
            functions[f"{name} {part}"] = partial(compiled, spec, mean, std)
    copy = jax.jit(lambda m, s: (m + 1.0, s + 1.0)).lower(mean, std).compile()
    functions["floor"] = partial(copy, mean, std)
    calls = max(1, 400_000 // (batch * n))
    masked = {k: f for k, f in functions.items() if k.startswith("masked")}
    times = interleave({k: f for k, f in functions.items() if k not in masked}, rounds, calls)
    # Afterwards, against the medians: its gigabytes slow down whatever allocates after it.
    times |= interleave(masked, rounds, calls)

    def over(name: str, reference: str) -> dict[str, float]:
        row = times[reference]
        return ratio(times[name], jnp.median(row) if name in masked else row)

    return {
        "batch": batch,
        "n": n,
        "milliseconds": {k: 1e3 * float(jnp.median(v)) for k, v in times.items()},
        "over_floor": {k: over(k, "floor") for k in times if k != "floor"},
        "over_ours": {k: over(k, f"ours {k.split()[1]}") for k in times if k != "floor"},
        "temporary_bytes": memory,
    }


def show(row: dict) -> None:
    """Print a row, a line for each form."""
    for form in ("ours", "autodiff", "masked"):
        name, line = f"{form} gradient", f"{row['batch']:>5}  {row['n']:>5}  {form:<8}"
        if name not in row["milliseconds"]:
            tell(f"{line}  too large to measure")
            continue
        over = text(row["over_ours"][name]) if form != "ours" else ""
        floor = text(row["over_floor"][name])
        tell(f"{line}  {row['milliseconds'][name]:>9.3f}  {floor:>22}  {over}".rstrip())


@command
def main() -> None:
    """Measure, print, write."""
    quick = "three small n at batch 200: under two minutes on two cores"
    arguments = parser(__doc__, "objective", TAKES, quick).parse_args()
    devices.start()
    sizes = (
        (50, 200, 1000) if arguments.quick else (50, 100, 200, 400, 800, 1000, 2000, 5000, 10_000)
    )
    batches = (200,) if arguments.quick else (200, 2000)
    tell(f"{LEGEND}{TAKES}\n")
    tell(f"{'batch':>5}  {'n':>5}  {'':<8}  {'ms':>9}  {'over the floor':>22}  over ours")
    rows = []
    for batch in batches:
        for n in sizes:
            rounds = 15 if arguments.quick else 30 if batch * n <= 1_000_000 else 8
            row = measure(batch, n, rounds)
            rows.append(row)
            show(row)
            write(arguments.out, rows, final=False)
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
