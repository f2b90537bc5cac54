"""What the spherical objective costs alone: its value and gradient against the latent dimension.

    python -m benchmarks.objective [--quick] [--out=FILE.json]

Three ways to the same numbers: ours (closed-form derivative), a running sum left to autodiff, and
the paper's n x n mask. The floor is the time to copy 8·B·n bytes on this machine (8·B·n read, 8·B·n
written): μ and σ read once, their gradients written once.
"""

import argparse
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.measure import (
    MASK_LIMIT,
    cumulative_statistics,
    interleave,
    masked_statistics,
    ratio,
    text,
    write,
)
from hsjax import losses


def objective(statistics, spec, mean, std):
    """Value of the regulariser with this form of the batch statistics."""
    with mock.patch.object(losses, "batch_statistics", statistics):
        return losses.total(losses.spherical_kl(mean, std, spec), spec)


def measure(batch: int, n: int, rounds: int) -> dict:
    """One row of the table."""
    keys = jax.random.split(jax.random.key(0))
    mean = jax.random.normal(keys[0], (batch, n))
    std = jnp.exp(0.1 * jax.random.normal(keys[1], (batch, n)))
    spec = losses.paper_spec(n)
    forms = {"ours": losses.batch_statistics, "autodiff": cumulative_statistics}
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
    # Apart, against the medians: its gigabytes slow down whatever allocates after it.
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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under two minutes on two cores")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/objective.json"))
    arguments = parser.parse_args()
    sizes = (
        (50, 200, 1000) if arguments.quick else (50, 100, 200, 400, 800, 1000, 2000, 5000, 10_000)
    )
    batches = (200,) if arguments.quick else (200, 2000)
    print(
        f"{'batch x n':>12}  {'ours, ms':>9}  {'over the floor':>22}  "
        f"{'autodiff / ours':>22}  {'masked / ours':>22}   (value and gradient)"
    )
    rows = []
    for batch in batches:
        for n in sizes:
            rounds = 15 if arguments.quick else 30 if batch * n <= 1_000_000 else 8
            row = measure(batch, n, rounds)
            rows.append(row)
            over = row["over_ours"]
            masked = text(over["masked gradient"]) if "masked gradient" in over else "too large"
            print(
                f"{batch:>5} x {n:<6} {row['milliseconds']['ours gradient']:>9.3f}  "
                f"{text(row['over_floor']['ours gradient']):>22}  "
                f"{text(over['autodiff gradient']):>22}  {masked:>22}",
                flush=True,
            )
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
