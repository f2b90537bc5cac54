"""What the benchmarks share: their command, interleaved rounds, ratios with their spread, JSON."""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hsjax.errors import UserError
from hsjax.files import writing
from hsjax.settings import all_settings
from hsjax.terminal import fold, is_terminal, tell

MASK_LIMIT = 1 << 29  # values of the mask's (2, B, n, n) product, 2 GiB: more is not measured


def parser(doc: str, name: str, takes: str, quick: str = "") -> argparse.ArgumentParser:
    """The flags of a benchmark: --out, and --quick if there is something to say about it.

    `takes` says how long it takes, in a sentence.
    """
    parser = argparse.ArgumentParser(
        description=f"{doc}\n{takes}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = Path(f"runs/benchmarks/{name}.json")
    text = "JSON file that gets all numbers (%(default)s)"
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help=text)
    if quick:
        parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(part) for part in text.split(",")]


def check_kinds(kinds: list[str]) -> list[str]:
    """Names of methods and settings, as they were given.

    Raises:
      UserError: there is no such one.
    """
    if unknown := [kind for kind in kinds if kind not in all_settings()]:
        raise UserError(f"{unknown[0]!r} is no method: choose from {', '.join(all_settings())}")
    return kinds


def interleave(functions: dict, rounds: int, calls: int = 1) -> dict[str, np.ndarray]:
    """Seconds a call of each function, [rounds]: every round runs them all, one after the other.

    So whatever slows the machine for a while slows all of them, and ratios within a round are
    valid. The order changes in each round, since what one leaves behind may slow the next. Each
    function is called without arguments and returns arrays, which are waited for.
    """
    times = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())  # warm up
    begun, rng = time.perf_counter(), np.random.default_rng(0)
    for done in range(rounds):
        for name in rng.permutation(list(functions)).tolist():
            function, start = functions[name], time.perf_counter()
            for _ in range(calls):
                out = function()
            jax.block_until_ready(out)
            times[name].append((time.perf_counter() - start) / calls)
        left = (time.perf_counter() - begun) / (done + 1) * (rounds - done - 1)
        progress(f"round {done + 1} of {rounds}, {left:.0f} s left")
    progress("")
    return {name: np.array(row) for name, row in times.items()}


def progress(what: str) -> None:
    """In a terminal, a line that the next one replaces."""
    if is_terminal():
        tell(f"\r\033[K{what}", end="")


def ratio(times: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Median and quartiles of the ratio of two rows of `interleave`."""
    low, median, high = np.quantile(times / reference, (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def text(r: dict[str, float]) -> str:
    """A ratio as "1.02 (1.00 to 1.04)"."""
    return f"{r['median']:.3g} ({r['low']:.3g} to {r['high']:.3g})"


def masked_statistics(x, eps):
    """`coordinate_moments` as the paper describes it: an n x n mask and autodiff, O(n²)."""
    n = x.shape[-1]
    mask = jnp.triu(jnp.ones((n, n), x.dtype))
    tails = jnp.sqrt(jnp.sum((x * x)[..., None, :] * mask, axis=-1) + eps)
    radius = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    columns = jnp.concatenate([(x / tails)[..., :-1], radius], axis=-1)
    return jnp.mean(columns, axis=-2), jnp.var(columns, axis=-2, ddof=1)


def cumulative_statistics(x, eps):
    """`coordinate_moments` as a running sum left to autodiff."""
    sums = jax.lax.cumsum(x * x, axis=x.ndim - 1, reverse=True)
    columns = jnp.concatenate(
        [(x * jax.lax.rsqrt(sums + eps))[..., :-1], jnp.sqrt(sums[..., :1])], axis=-1
    )
    return jnp.mean(columns, axis=-2), jnp.var(columns, axis=-2, ddof=1)


def write(path: Path, rows: list[dict], *, final: bool = True, **about) -> None:
    """Rows with the machine, the versions and what else they were measured with.

    Its path is printed only if it is final.
    """
    device = jax.devices()[0]
    head = {
        "device": f"{device.device_kind} ({device.platform}), {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
        **about,
        "rows": rows,
    }
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head, indent=1) + "\n")
    if final:
        tell(fold(f"{head['device']}, jax {head['versions']['jax']}: {path}"))
