"""How exact the coordinates are in float32, against sums in extended precision.

    python -m benchmarks.accuracy [--out=FILE.json]

The largest error over rows of several kinds. Needs a machine whose long double
has 64 bits of mantissa or more, such as x86-64.
"""

import numpy as np

from benchmarks.measure import parser, write
from hsjax import coordinates, devices
from hsjax.terminal import command, tell

LEGEND = """\
Largest error over rows of several kinds, by n:
  cosines     relative to themselves
  angles      in radians
  round_trip  there and back, relative to the radius
"""
TAKES = "It takes less than a minute on two cores."
TINY = np.finfo(np.float32).tiny


def rows(kind, n, count=3, seed=0):
    """float32 rows of the kinds a latent can take."""
    x = np.random.default_rng(seed).normal(size=(count, n))
    k = np.arange(n)
    x = {
        "gaussian": lambda: x,
        "compressed": lambda: x * 0.5 ** (50 * k / n),
        "geometric": lambda: x * 0.9**k,  # the tail passes 1e-19, where float32 squares vanish
        "zero tail": lambda: np.where(k < (n + 1) // 2, x, 0.0),
        "small": lambda: x * 1e-15,
        "large": lambda: x * 1e15,
    }[kind]()
    return np.where(np.abs(x) < TINY, 0.0, x).astype(np.float32)


KINDS = ("gaussian", "compressed", "geometric", "zero tail", "small", "large")


def reference(x):
    """radius, cosines and angles by the definition, in extended precision."""
    x = x.astype(np.longdouble)
    tails = np.sqrt(np.cumsum((x * x)[..., ::-1], axis=-1)[..., ::-1])
    safe = np.where(tails > 0, tails, 1)
    rest = np.concatenate([tails[..., 1:-1], x[..., -1:]], axis=-1)
    return tails[..., 0], (x / safe)[..., :-1], np.arctan2(rest, x[..., :-1])


def errors(x) -> dict[str, float]:
    """Largest errors over rows [count, n]."""
    radius, cosines, angles = reference(x)
    r, phi = (np.asarray(a) for a in coordinates.to_spherical(x))
    off = np.abs(np.asarray(coordinates.cosines(x)) - cosines)
    back = np.abs(np.asarray(coordinates.to_cartesian(r, phi)) - x.astype(np.longdouble))
    return {
        "cosines": float(np.max(off / np.where(cosines != 0, np.abs(cosines), 1))),
        "angles": float(np.max(np.abs(phi - angles))),
        "round_trip": float(np.max(back / radius[:, None])),
    }


@command
def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__, "accuracy", TAKES).parse_args()
    devices.start()
    tell(f"{LEGEND}{TAKES}\n")
    table = []
    for n in (200, 1000, 100_000, 1_000_000):
        by_kind = {kind: errors(rows(kind, n, count=20 if n <= 1000 else 2)) for kind in KINDS}
        worst = {
            k: max(e[k] for e in by_kind.values()) for k in ("cosines", "angles", "round_trip")
        }
        table.append({"n": n, "worst": worst, "by_kind": by_kind})
        tell(f"{n:>8}  " + "  ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    write(arguments.out, table)


if __name__ == "__main__":
    main()
