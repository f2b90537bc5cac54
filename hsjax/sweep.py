"""Train methods at many strengths, and compare them at equal reconstruction error.

    hsjax sweep --quick
    hsjax sweep --config=cifar --n=50,200 --seeds=0,1 --together=4 \\
    --set train.epochs=300 standard=0.1,0.3,1 compressed=3,10 rae=0.01,0.05

trains and judges every (kind, strength, n, seed) under every sampler, and draws
the paper's figure 2. A kind is a method or a named setting of one. Its
strength is loss.beta, or method.angle_gain for compressed, half and spread.
Samples are judged by three feature networks (evaluate.feature_seeds). A
finished run is one line of --out with its whole config. Repeat the command to
do what is missing; a run stopped halfway continues from its checkpoint.
--judge judges every run once more with other fields of sample and evaluate, for
example to choose strengths on held-out training images, not on test images:

    --set data.validation_share=0.1 --judge evaluate.split=validation

--together=8 trains up to eight runs at once if they differ only in numbers: one
or several on each device; on a CPU, one on each core.

Several machines share the work with --shard=1/3, 2/3, 3/3, each with its own
--out; --plot FILE ... draws the runs of some files without training.
"""

import argparse
import ast
import inspect
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hsjax import data, experiment, settings, terminal, tradeoff
from hsjax.cli import check_file, config_path, start
from hsjax.config import method_fields, validate
from hsjax.errors import Diverged, UserError
from hsjax.terminal import command, fold, tell

# Squared errors, summed over an image, below which the paper calls a model useful: 0.008 a value.
USEFUL = {"cifar10": 0.008 * 32 * 32 * 3}
QUICK = {
    "points": ["standard=0.03,0.1,0.3", "compressed=1,3,10", "spread=0,3,10"],
    "n": "16,32,64",
    "epochs": 60,
}


class Point(NamedTuple):
    """One run of the sweep."""

    kind: str
    strength: float
    n: int
    seed: int

    def __str__(self):
        return f"{self.kind}-{self.strength:g}-n{self.n}-seed{self.seed}"


def points(texts: list[str], dimensions: list[int], seeds: list[int]) -> list[Point]:
    """All runs of "kind=strength,strength", seed by seed: the first seed of all points comes first.

    Raises:
      UserError: an unknown kind or a strength that is no number.
    """
    pairs = []
    for text in texts:
        kind, _, strengths = text.partition("=")
        if kind not in settings.all_settings():
            raise UserError(
                f"{text!r}: the kind of model is one of {', '.join(settings.all_settings())}"
            )
        try:
            pairs += [(kind, float(strength)) for strength in strengths.split(",")]
        except ValueError:
            raise UserError(f"{text!r}: write a kind as {kind}=0.1,0.3") from None
    return [Point(*pair, n, seed) for seed, n, pair in itertools.product(seeds, dimensions, pairs)]


def config_of(path: str, point: Point, changes: list[str], epochs: int | None = None) -> ConfigDict:
    """The config of a run: the file's, shortened, with the changes "FIELD=VALUE", then the point's.

    Annealing lasts a third of the epochs, as in the paper.

    Raises:
      UserError: no such file or field, or a value that does not fit it.
    """
    config = base(path, point.kind)
    if epochs is not None:
        settings.shorten(config, epochs)
    config.train.checkpoints_kept = 1
    config.sample.sampler = "projected_gaussian"
    config.evaluate.feature_seeds = (0, 1, 2)
    config.evaluate.metrics = ("frechet", "kid", "prdc", "knn", "probe", "latents")
    strength = settings.find(point.kind).strength
    if config.loss.annealing != "none":
        config.loss.annealing_epochs = -(-config.train.epochs // 3)
    for change in changes:
        field, _, text = change.partition("=")
        if field in ("model.latent_dim", "seed", strength):
            raise UserError(f"--set {change}: give it by --n, --seeds or {point.kind}=STRENGTH")
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text  # a plain word
        _update(config, {field: value}, f"--set {change}")
    _update(config, {strength: point.strength}, str(point))
    config.model.latent_dim, config.seed = point.n, point.seed
    validate(config)
    return config


def base(path: str, kind: str = "") -> ConfigDict:
    """The config of a file, with the method and the fields of this kind if any is given."""
    path = config_path(path)
    if ":" in path:
        raise UserError(f"--config={path}: give the file alone, and {path.split(':')[1]}=STRENGTH")
    get_config = check_file(path)
    if not kind:
        return get_config()
    if inspect.signature(get_config).parameters:
        return get_config(kind).lock()
    config = get_config()
    config.method = method_fields(settings.find(kind).method)
    config.loss.annealing, config.loss.relative_beta = "none", False  # were for the file's method
    config.model.project = False
    return settings.apply(config, kind, {}).lock()


def _update(config, fields, source):
    try:
        config.update_from_flattened_dict(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from error


def identity(config: ConfigDict) -> dict:
    """The fields that a run depends on, in the form that JSON gives back."""
    tree = json.loads(json.dumps(config.to_dict()))
    del tree["data"]["dir"]
    return tree


def read(paths: list[Path]) -> list[dict]:
    """The finished runs of some files; a line cut off by a kill is left out.

    Raises:
      UserError: no such file.
    """
    rows = []
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def append(path: Path, row: dict) -> None:
    """Append one line in one write, after ending a line that a kill left incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def run(point: Point, config: ConfigDict, dataset: data.Dataset, workdir: Path) -> dict:
    """Train and judge one point: its line. If it diverges, the line has the reason, not numbers."""
    started = time.monotonic()
    found: dict | Diverged
    try:
        found = experiment.train_and_evaluate(config, workdir, dataset=dataset)
    except Diverged as error:
        found = error
    return _line(point, config, found, time.monotonic() - started)


def run_together(
    jobs: Sequence[tuple[Point, ConfigDict]], dataset: data.Dataset, folder: Path
) -> Iterator[dict]:
    """The lines of several points that are trained in one program, as each is judged."""
    points, configs = zip(*jobs, strict=True)
    workdirs = [folder / str(point) for point in points]
    ends = experiment.train_and_evaluate_together(configs, workdirs, dataset)
    for (point, config), (found, seconds) in zip(jobs, ends, strict=True):
        yield _line(point, config, found, seconds) | {"together": len(jobs)}


def _line(point: Point, config: ConfigDict, found: dict | Diverged, seconds: float) -> dict:
    epochs = config.train.epochs
    if not isinstance(found, Diverged) and found["epoch"] > epochs:
        raise UserError(
            f"{point} was trained for {found['epoch']} epochs before, and {epochs} are wanted now: "
            "give another --out"
        )
    device = jax.devices()[0]
    return {
        **point._asdict(),
        "config": identity(config),
        **({"diverged": str(found)} if isinstance(found, Diverged) else {"numbers": found}),
        "seconds": seconds,
        "device": f"{device.device_kind} ({device.platform})",
        "versions": {name: version(name) for name in ("jax", "flax")},
    }


def grouped(
    jobs: Sequence[tuple[Point, ConfigDict]], most: int
) -> Iterator[list[tuple[Point, ConfigDict]]]:
    """Groups of at most `most` jobs that can be trained together, each with its own folder.

    A group larger than the number of devices is a multiple of it, so that all have equal work. On a
    CPU, where several runs on a device take longer than one after the other, no group is larger.
    """
    there = jax.local_device_count()
    if jax.default_backend() == "cpu":
        most = min(most, there)
    left = [(experiment.joins(config), (point, config)) for point, config in jobs]
    while left:
        alike, names = left[0][0], set[str]()
        chosen: list[tuple] = []
        for entry in left:
            name = str(entry[1][0])
            if entry[0] == alike and name not in names and len(chosen) < most:
                chosen.append(entry)
                names.add(name)
        if len(chosen) > there:
            del chosen[len(chosen) // there * there :]
        left = [entry for entry in left if all(entry is not other for other in chosen)]
        yield [job for _, job in chosen]


def distances(row: dict, key: str = "to_test") -> dict[str, float]:
    """A run's distances by sampler: the mean over its feature networks, NaN if one is missing."""
    networks = row["numbers"]["generation"]
    return {
        name: float(np.mean([network["samplers"][name].get(key, np.nan) for network in networks]))
        for name in networks[0]["samplers"]
    }


def table(rows: list[dict], samplers: list[str], key: str = "to_test") -> str:
    """A line for each (kind, strength, n): means over seeds, ± their deviation if several."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["n"], row["strength"]), []).append(row)

    def cell(values):
        spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
        return f"{np.mean(values):.4g}{spread}"

    lines = [["kind", "n", "strength", "runs", "MSE (μ)", "MSE (z)", "k-NN", *samplers]]
    for (kind, n, strength), group in sorted(groups.items()):
        numbers = [row["numbers"] for row in group]
        cells = [cell([m[key] for m in numbers]) for key in ("mse_sum", "mse_sum_sampled_z")]
        labelled = all("knn_accuracy" in m for m in numbers)
        cells.append(cell([m["knn_accuracy"] for m in numbers]) if labelled else "-")
        cells += [cell([distances(row, key)[name] for row in group]) for name in samplers]
        lines.append([kind, str(n), f"{strength:g}", str(len(group)), *cells])
    return terminal.table(lines, heads=3)


def equal_error(
    rows: list[dict], sampler: str, mse: float, key: str = "to_test"
) -> dict[str, float]:
    """Distance at this reconstruction error (sum, z = μ), by kind of model.

    Seeds are averaged, and the points of a kind joined by straight lines in order of their error;
    kinds that don't have errors on both sides of this one are left out. All rows have the same n.
    """
    found = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        by_strength: dict[float, list] = {}
        for row in rows:
            if row["kind"] == kind:
                pair = row["numbers"]["mse_sum"], distances(row, key)[sampler]
                by_strength.setdefault(row["strength"], []).append(pair)
        front = sorted(tuple(np.mean(pairs, axis=0)) for pairs in by_strength.values())
        errors, values = zip(*front, strict=True)
        if errors[0] <= mse <= errors[-1]:
            found[kind] = float(np.interp(mse, errors, values))
    return found


def plot(path: Path, rows: list[dict], key: str = "to_test") -> list[Path]:
    """Figure 2 over n, and for each n over the strength, if there are two points to join."""
    config, numbers = rows[0]["config"], rows[0]["numbers"]
    networks = numbers["generation"]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    footer = (
        f"{Path(config['data']['name']).stem}, {config['train']['epochs']} epochs, "
        f"{len(rows)} runs, seeds {seeds}; mean over {len(networks)} feature "
        f"network{'s' * (len(networks) > 1)}, {numbers['sample_count']} samples, "
        f"fitted to the {numbers['fit_split']} means; {judgement(rows[0])}"
    )
    dashed = {kind for kind, one in settings.all_settings().items() if one.method != "spherical"}

    def drawn(row, label):
        return {
            "label": label,
            "style": "dashed" if row["kind"] in dashed else "solid",
            **{key: row[key] for key in ("n", "seed", "strength")},
            "mse": row["numbers"]["mse_sum"],
            "distances": distances(row, key),
        }

    dimensions = sorted({row["n"] for row in rows})
    written = []
    if len(dimensions) > 1:
        strengths = {row["kind"]: settings.find(row["kind"]).strength for row in rows}
        signs = {k: "β" if strength == "loss.beta" else "w" for k, strength in strengths.items()}
        labelled = [drawn(r, f"{r['kind']}, {signs[r['kind']]} {r['strength']:g}") for r in rows]
        written.append((path.with_suffix(".png"), labelled, "n"))
    for n in dimensions:
        chosen = [drawn(row, row["kind"]) for row in rows if row["n"] == n]
        if len({row["strength"] for row in chosen}) > 1:
            written.append((path.with_name(f"{path.stem}_n{n}.png"), chosen, "strength"))
    against = "reconstructions" if key != "to_test" else numbers.get("split", "test")
    distance = f"{networks[0]['distance']}, samples against {against}"
    useful = USEFUL.get(config["data"]["name"])
    for file, chosen, join in written:
        tradeoff.tradeoff(file, chosen, footer, distance_name=distance, join=join, useful=useful)
    return [file for file, _, _ in written]


def judgement(row: dict) -> str:
    """On which images a run was judged, and how; older rows are of the test images."""
    numbers = {"split": "test", "batch_norm": "running", "latent_scale": 1.0} | row["numbers"]
    scaled = f", latents × {scale:g}" if (scale := numbers["latent_scale"]) != 1.0 else ""
    return f"{numbers['split']} images, BatchNorm {numbers['batch_norm']}{scaled}"


def report(
    path: Path, rows: list[dict], equal: list[float] | None = None, key: str = "to_test"
) -> None:
    """Print the table and the distances at equal errors (quartiles if not given), draw the figures.

    The key chooses the distance: "to_test", or "to_reconstructions", the paper's self-FD.
    """
    if key != "to_test":
        path = path.with_stem(f"{path.stem}_self")
    for row in rows:
        if "diverged" in row:
            name = Point(*(row[field] for field in Point._fields))
            tell(f"{name} diverged: {row['diverged']}")
    rows = [row for row in rows if row.get("numbers", {}).get("generation")]
    if not rows:
        tell("no finished run whose samples were judged yet")
    alike: dict[tuple, list[dict]] = {}  # in data, length, judgement and samplers
    for row in rows:
        trained = row["config"]["data"]["name"], row["config"]["train"]["epochs"]
        alike.setdefault((judgement(row), *trained, *distances(row)), []).append(row)
    for i, ((which, *_), group) in enumerate(alike.items()):
        own = path if i == 0 else path.with_stem(f"{path.stem}_{i + 1}")
        _report(own, which, group, equal, key)


def _report(path, which, rows, equal, key):
    """`report` for rows that were judged alike."""
    samplers = list(distances(rows[0]))
    distance = rows[0]["numbers"]["generation"][0]["distance"]
    against = "" if key == "to_test" else "reconstructions of "
    tell("\n" + fold(f"{distance} of samples to {against}{which}, by sampler (± over seeds)"))
    tell(table(rows, samplers, key))
    reference = rows[0]["kind"]
    for n in sorted({row["n"] for row in rows}):
        chosen = [row for row in rows if row["n"] == n]
        errors = [row["numbers"]["mse_sum"] for row in chosen if row["kind"] == reference]
        if len(set(errors)) < 2:
            continue
        lines = []
        for mse in equal or np.linspace(min(errors), max(errors), 5)[1:-1]:
            for sampler in samplers:
                found = equal_error(chosen, sampler, mse, key)
                mine = found.pop(reference, None)
                if mine and found:
                    cells = "  ".join(f"{kind} {v / mine:.2f}" for kind, v in found.items())
                    lines.append(f"  MSE {mse:.3g}  {sampler:<18}  {reference} {mine:.4g}  {cells}")
        if lines:
            about = f"distance over that of {reference}, the first kind"
            tell("\n".join([f"at equal MSE (sum, z = μ), n = {n}: {about}", *lines]))
        else:
            tell(fold(f"n = {n}: no other kind reaches the errors of {reference}: add strengths"))
    for file in plot(path, rows, key):
        tell(f"figure: {file}")


@command
def main() -> None:
    """Do what is missing of the sweep, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "points",
        nargs="*",
        metavar="KIND=STRENGTH,...",
        help=f"KIND is one of {', '.join(settings.all_settings())}",
    )
    parser.add_argument(
        "--config",
        default="digits",
        metavar="FILE",
        help="config that all runs start from, a file or the name of one in configs/ (%(default)s)",
    )
    parser.add_argument("--n", metavar="N,...", help="latent dimensions; the config's if not given")
    parser.add_argument(
        "--seeds", default="0", metavar="SEED,...", help="seeds of the runs (%(default)s)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the config in all runs; may be given several times",
    )
    parser.add_argument(
        "--epochs", type=int, help="length of the runs; annealing and decay scale with it"
    )
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="FIELD=VALUE;...",
        help="judge all runs once more with these fields; may be given several times",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/tradeoff/sweep.jsonl"),
        metavar="FILE",
        help="file that gets a line for each finished run (%(default)s)",
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="I/K", help="this machine's share of the runs"
    )
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        metavar="K",
        help="train up to K runs at once that differ in seed, strength and numbers of the method",
    )
    parser.add_argument("--plot", nargs="+", type=Path, metavar="FILE", help="only draw their runs")
    parser.add_argument(
        "--equal",
        type=float,
        nargs="+",
        metavar="MSE",
        help="reconstruction errors to compare at; quartiles if not given",
    )
    parser.add_argument(
        "--self",
        action="store_const",
        dest="key",
        const="to_reconstructions",
        default="to_test",
        help="compare samples with reconstructions, as the paper does, not with test images",
    )
    parser.add_argument("--quick", action="store_true", help="digits, in ten minutes on two cores")
    arguments = parser.parse_args()
    if arguments.plot:
        report(arguments.plot[0], read(arguments.plot), arguments.equal, arguments.key)
    else:
        sweep(arguments)


def sweep(arguments: argparse.Namespace) -> None:
    """The runs of the command line that have no line yet, in order."""
    quick: dict[str, Any] = QUICK if arguments.quick else {"points": [], "n": None, "epochs": None}
    epochs = quick["epochs"] if arguments.epochs is None else arguments.epochs
    n = arguments.n or quick["n"] or str(base(arguments.config).model.latent_dim)
    try:
        dimensions = [int(n) for n in n.split(",")]
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        shard, shards = map(int, arguments.shard.split("/"))
    except ValueError as error:
        raise UserError(f"--n, --seeds and --shard hold whole numbers: {error}") from error
    if arguments.together < 1:
        raise UserError(f"--together={arguments.together}: make it 1 or more")
    wanted = points(arguments.points or quick["points"], dimensions, seeds)
    if not wanted or not 1 <= shard <= shards:
        raise UserError("give points such as standard=0.1,0.3, and a shard from 1/k to k/k")
    judged = [[], *(text.split(";") for text in arguments.judge)]
    jobs = [
        (point, config_of(arguments.config, point, arguments.set + fields, epochs))
        for point in wanted[shard - 1 :: shards]
        for fields in judged
    ]
    there = [row["config"] for row in read([arguments.out] if arguments.out.exists() else [])]
    missing = [(point, config) for point, config in jobs if identity(config) not in there]
    tell(f"{len(missing)} of {len(jobs)} lines are missing from {arguments.out}")
    if missing:
        start(arguments.together)
        dataset = data.of_config(missing[0][1].data)
        if experiment.fits(dataset.train_images, missing[0][1]):
            images: Any = jnp.asarray(dataset.train_images)  # once for all runs
            dataset = dataset._replace(train_images=images)
    folder, done = arguments.out.with_suffix(""), 0
    if arguments.together == 1:
        for i, (point, config) in enumerate(missing):
            tell(f"\n[{i + 1}/{len(missing)}] {point}")
            append(arguments.out, run(point, config, dataset, folder / str(point)))
    else:
        for jobs in grouped(missing, arguments.together):
            numbers = f"{done + 1} to {done + len(jobs)} of {len(missing)}"
            tell("\n" + fold(f"[{numbers}] {', '.join(str(point) for point, _ in jobs)}"))
            for row in run_together(jobs, dataset, folder):
                append(arguments.out, row)
            done += len(jobs)
    kept = [identity(config) for _, config in jobs]
    rows = [row for row in read([arguments.out]) if row["config"] in kept]
    report(arguments.out, rows, arguments.equal, arguments.key)


if __name__ == "__main__":
    main()
