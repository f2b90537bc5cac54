"""Which method, under which sampler? Pages and figures of finished sweeps.

    hsjax leaderboard docs/results/matrix_*.jsonl --out=docs/leaderboard.md

The files hold the lines of `hsjax sweep`. On each data set, strengths and
fitted samplers are chosen on validation images, if some lines are of those
(--judge evaluate.split=validation). All numbers shown are of the test images.
Text above the first generated line of the page is kept.
"""

import argparse
import inspect
import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import numpy as np

from hsjax import settings, sweep
from hsjax.cli import CONFIGS
from hsjax.config import flattened
from hsjax.errors import UserError
from hsjax.figures import (
    HALO,
    LINES,
    Line2D,
    describe,
    log_x,
    log_y,
    new_figure,
    own_settings,
    save,
    untangle,
)
from hsjax.methods import METHODS
from hsjax.samplers import SAMPLERS
from hsjax.terminal import command, tell

GENERATED = "<!-- What follows was written by `hsjax leaderboard`. -->"
LEGEND = """# Leaderboard

- **FD**: the Fréchet distance between new images and test images, in the features that a table
  names. Lower is better. *self-FD*: the distance to reconstructions.
- **Own** samples come from the method's own prior, **fitted** ones from a distribution that is
  fitted to the latents of training images.
- **Place**: one plus how many are better beyond the noise of seeds. `=` is a tie.
- **FD / standard**: over that of `standard` at the same error, by straight lines between its
  strengths. It needs runs of `standard`.
- **memory**: the share of samples that are nearer to a training image than to any test image.
- A method's name leads to the command that trains it.
"""
TITLES = {"cifar10": "CIFAR10 (JPEG re-encoded)", "mnist": "MNIST", "digits": "Digits"}
# The runs of a board agree in these.
ALIKE = (
    *("data.name", "evaluate.batch_norm", "data.leave_out", "data.validation_share"),
    *("model.latent_dim", "model.stages", "train.epochs", "train.batch_size"),
    *("train.learning_rate", "sample.count", "sample.fit_split", "evaluate.latent_scale"),
    *("evaluate.features", "evaluate.feature_seeds", "evaluate.feature_steps"),
)
# Fields that a sweep sets for all of its runs; no number of one sampler depends on them.
OF_SWEEP = (
    *("evaluate.samplers", "evaluate.metrics", "evaluate.split", "sample.sampler"),
    *("train.checkpoints_kept", "data.device_share"),
)
OF_TRAINING = ("method.", "model.", "loss.", "train.", "data.", "sample.")
UNFITTED = ("own", "prior", "uniform_sphere")
WITHOUT_STRENGTH = ("autoencoder", "sphere_ae")
FAMILIES = {
    "Gaussian posterior": ("standard", "standard_projected", "cartesian"),
    "hyperspherical": ("spherical",),
    "point": ("autoencoder", "rae", "swae", "wae"),
    "on the sphere": ("sphere_ae", "svae", "spherical_swae", "sphere_encoder"),
    "learned prior or codes": ("mixture", "vampprior", "vqvae"),
}
OF_RUNS = {"mse_sum": "MSE (μ)", "knn_accuracy": "k-NN"}
OF_SAMPLES = {
    "to_test": "FD",
    "to_reconstructions": "self-FD",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "nearest_is_training": "memory",
}


class Entry(NamedTuple):
    """A kind of model at one strength: the rows of its runs, by seed."""

    kind: str
    strength: float
    runs: dict[int, dict]

    def __str__(self):
        return self.kind if self.kind in WITHOUT_STRENGTH else f"{self.kind} {self.strength:g}"

    @property
    def samplers(self) -> list[str]:
        """The samplers that any of the runs was judged under, in the library's order."""
        there = {name for row in self.runs.values() for name in sweep.distances(row)}
        return [name for name in SAMPLERS if name in there]

    def of_seed(self, seed: int) -> "Entry":
        """The run of this seed alone."""
        return self._replace(runs={seed: self.runs[seed]})


class Line(NamedTuple):
    """An entry, and the sampler that it is shown under."""

    entry: Entry
    sampler: str

    def __str__(self):
        return f"{self.entry}, {self.sampler}"

    def of(self, key: str) -> list[float]:
        """A number of each run; a number of samples is the mean over the feature networks."""
        rows = self.entry.runs.values()
        if key in OF_RUNS:
            return [row["numbers"].get(key, np.nan) for row in rows]
        found = [sweep.distances(row, key) for row in rows]
        return [by_sampler[self.sampler] for by_sampler in found if self.sampler in by_sampler]

    def mean(self, key: str = "to_test") -> float:
        """The mean of `of` over the seeds."""
        return float(np.mean(self.of(key)))


class Board(NamedTuple):
    """What was trained and judged alike on one data set."""

    name: str  # of its pages and figures
    title: str
    config: dict  # of one of the runs
    device: str
    tested: list[Entry]  # all strengths, judged on test images
    held_out: list[Entry]  # the same, judged on validation images


def boards(rows: list[dict]) -> list[Board]:
    """Groups of rows that agree in all fields of `ALIKE`.

    Rows that diverged, or whose samples weren't judged, are left out. Rows of one run under
    different samplers are joined.

    Raises:
      UserError: no row is left, a row is of no sweep, or runs of one kind and strength have other
        settings.
    """
    groups: dict[tuple, tuple[dict, dict[str, dict[tuple[str, float], dict]]]] = {}
    models: dict[tuple, dict] = {}
    for row in rows:
        if lacking := {"kind", "strength", "seed", "config", "device"} - row.keys():
            raise UserError(f"a line lacks {min(lacking)}: give files of hsjax sweep")
        numbers, config = row.get("numbers", {}), flattened(row["config"])
        if not numbers.get("generation") or np.isnan([*sweep.distances(row).values()]).all():
            continue
        config["data.name"] = Path(config["data.name"]).stem
        alike = tuple(str(config.get(field)) for field in ALIKE)
        key = row["kind"], row["strength"]
        model = {f: v for f, v in config.items() if f.startswith(OF_TRAINING)}
        model = {f: v for f, v in model.items() if f not in (*ALIKE, *OF_SWEEP)}
        known = models.setdefault((alike, *key), model)
        if other := [f for f in model if known.get(f, model[f]) != model[f]]:
            raise UserError(
                f"{key[0]} {key[1]:g}: there are runs of {other[0]}={known[other[0]]} and of "
                f"{model[other[0]]}: make a leaderboard of each"
            )
        splits = groups.setdefault(alike, (row, {"test": {}, "validation": {}}))[1]
        runs = splits[numbers.get("split", "test")].setdefault(key, {})
        if row["seed"] not in runs:
            runs[row["seed"]] = row
            continue
        networks = runs[row["seed"]]["numbers"]["generation"]
        for known, new in zip(networks, numbers["generation"], strict=True):
            known["samplers"] = new["samplers"] | known["samplers"]
    if not groups or not all(splits["test"] for _, splits in groups.values()):
        raise UserError("no finished run whose samples were judged on test images")
    found = []
    for alike, (row, splits) in groups.items():
        name, mode, *_ = alike
        rivals = [other for other in groups if other[:2] == alike[:2]]
        differing = [
            f"{field} {value}"
            for field, value, *values in zip(ALIKE, alike, *rivals, strict=True)
            if len(set(values)) > 1
        ]
        batch = mode == "batch"
        number = f"_{rivals.index(alike) + 1}" * bool(differing)
        title = ", ".join([TITLES.get(name, name), *["batch statistics"] * batch, *differing])
        entries = (
            [Entry(*key, runs) for key, runs in splits[split].items()]
            for split in ("test", "validation")
        )
        name += "_batch" * batch + number
        found.append(Board(name, title, row["config"], row["device"], *entries))
    return found


def nearest(entry: Entry, among: Callable[[str], bool]) -> Line:
    """The entry under the sampler with the lowest distance, of those that `among` accepts.

    Raises:
      UserError: it was judged under none of these.
    """
    lines = [Line(entry, sampler) for sampler in entry.samplers if among(sampler)]
    if not lines:
        raise UserError(f"{entry}: judge it under own and a fitted sampler (evaluate.samplers)")
    return min(lines, key=Line.mean)


def own(sampler: str) -> bool:
    """Whether it is the method's own prior, which needs no fit after training."""
    return sampler == "own"


def fitted(sampler: str) -> bool:
    """Whether it is fitted to the embeddings, after training."""
    return sampler not in UNFITTED


def choices(board: Board, among: Callable[[str], bool]) -> list[Line]:
    """For each kind, the strength and the accepted sampler with the lowest distance; sorted by it.

    They are chosen on the first seed, which all strengths have, so that further seeds, which only
    the chosen strengths have, don't change the choice.
    """
    chosen = []
    for kind in dict.fromkeys(entry.kind for entry in board.tested):
        tested = {entry.strength: entry for entry in board.tested if entry.kind == kind}
        judged = [e for e in board.held_out if e.kind == kind and e.strength in tested]
        first_seeds = (entry.of_seed(min(entry.runs)) for entry in judged or tested.values())
        best = min((nearest(entry, among) for entry in first_seeds), key=Line.mean)
        chosen.append(best._replace(entry=tested[best.entry.strength]))
    return sorted(chosen, key=Line.mean)


def spread(values: Iterable[list[float]]) -> float:
    """The deviation over seeds as a share of the mean, pooled; 0 if there is one seed of each."""
    shares = [np.std(v, ddof=1) / np.mean(v) for v in values if len(v) > 1]
    return float(np.sqrt(np.mean(np.square(shares)))) if shares else 0.0


def places(values: list[list[float]], *, least: bool = True) -> list[int]:
    """The place of each, from its numbers over seeds: 1 plus how many are better beyond noise.

    One is better if it differs by more than twice the standard error of the difference, with the
    pooled `spread` over seeds for all. Where that is 0, every difference counts.
    """
    means = np.array([np.mean(v) for v in values])
    errors = spread(values) * np.abs(means) / np.sqrt([len(v) for v in values])
    worse = (means[:, None] - means[None]) * (1 if least else -1)
    better = worse > 2 * np.hypot(errors[:, None], errors[None])
    return [1 + int(count) for count in better.sum(axis=1)]


def over_standard(board: Board, line: Line, sampler: str) -> float:
    """The distance divided by that of `standard` under `sampler` at the same error, or NaN.

    It is NaN if the error is outside the range of the strengths of `standard`.
    """
    twins = [row for e in board.tested if e.kind == "standard" for row in e.runs.values()]
    twins = [row for row in twins if sampler in sweep.distances(row)]
    there = sweep.equal_error(twins, sampler, line.mean("mse_sum"))
    return line.mean() / there.get("standard", np.nan)


def train_command(kind: str, config: dict) -> str:
    """The command that trains a run of this config, as in a row."""
    for name in ("digits", "mnist", "cifar", "celeba", "images"):
        start = sweep.base(f"{CONFIGS}/{name}.py", kind)
        if start.data.name == config["data"]["name"]:
            break
    there, flags = flattened(sweep.identity(start)), []
    for field, value in flattened(config).items():
        if field not in OF_SWEEP and there.get(field) != value:
            text = f"--config.{field}={tuple(value) if isinstance(value, list) else value}"
            flags.append(shlex.quote(text))
    return " ".join([f"hsjax train --config={name}:{kind}", *flags])


def number(values: list[float]) -> str:
    """The mean, and ± the deviation if there are several; nothing if one isn't finite."""
    if not np.isfinite(values).all():
        return ""
    bar = f" ± {float(f'{np.std(values, ddof=1):.1g}'):g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{bar}"


def markdown(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A table, without empty columns."""
    columns = [column for column in zip(heads, *rows, strict=True) if any(column[1:])]
    heads, *rows = (list(row) for row in zip(*columns, strict=True))
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def first(values: dict[str, list[float]], *, least: bool = True) -> str:
    """The name in first place, with its number, and the names level with it."""
    values = {name: v for name, v in values.items() if np.isfinite(v).all()}
    if not values:
        return ""
    order = sorted(values, key=lambda name: np.mean(values[name]), reverse=not least)
    ranks = places([values[name] for name in order], least=least)
    names = [f"`{name}`" for name, rank in zip(order, ranks, strict=True) if rank == 1]
    ties = f"; level with it: {', '.join(names[1:])}" if names[1:] else ""
    return f"{names[0]} ({number(values[order[0]])}){ties}"


def wishes(lines: list[Line], unfitted: list[Line]) -> str:
    """A table of what is first for each wish."""

    def learned(line):
        prior = METHODS[settings.find(line.entry.kind).method].prior
        return "variables" in inspect.signature(prior).parameters

    def of(key, some):
        return {str(line.entry): line.of(key) for line in some}

    fixed = [line for line in unfitted if not learned(line)]
    rows = {
        "lowest reconstruction error, MSE (μ)": first(of("mse_sum", lines)),
        "lowest FD, own samples, fixed prior": first(of("to_test", fixed)),
        "lowest FD, own samples, learned priors too": first(of("to_test", unfitted)),
        "lowest FD, fitted samples": first({str(x): x.of("to_test") for x in lines}),
        "classes apart, k-NN accuracy": first(of("knn_accuracy", lines), least=False),
    }
    return markdown(["wish", "first"], map(list, rows.items()))


def ranking(board: Board, lines: list[Line], reference: str, costs: dict[str, float]) -> str:
    """A table of all lines, the lowest distance first, with the other numbers of their samples."""
    ranks = places([line.of("to_test") for line in lines])
    heads = ["place", "method, strength", "sampler", "seeds", *OF_RUNS.values()]
    heads += [*OF_SAMPLES.values(), "FD / standard", "step"]
    rows = []
    for line, rank in zip(lines, ranks, strict=True):
        cost = costs.get(settings.find(line.entry.kind).method, np.nan)
        ratio = over_standard(board, line, reference)
        rows.append(
            [
                f"{rank}{'=' * (ranks.count(rank) > 1)}",
                f"[`{line.entry}`]({_page(board)}#{line.entry.kind})",
                f"`{line.sampler}`",
                str(len(line.of("to_test"))),
                *(number(line.of(key)) for key in [*OF_RUNS, *OF_SAMPLES]),
                f"{ratio:.2f}" if np.isfinite(ratio) else "",
                f"{cost:.2f}" if np.isfinite(cost) else "",
            ]
        )
    return markdown(heads, rows)


def distances(entries: list[Entry]) -> tuple[list[str], np.ndarray]:
    """Samplers, and distances [entries, samplers]: NaN where an entry wasn't judged under one."""
    names = [s for s in SAMPLERS if any(s in entry.samplers for entry in entries)]
    there = [[Line(e, s).mean() if s in e.samplers else np.nan for s in names] for e in entries]
    return names, np.array(there)


def matrix(board: Board, entries: list[Entry]) -> str:
    """Methods by samplers: FD, and in each cell a link to its commands."""
    names, values = distances(entries)
    rows = []
    for entry, row in zip(entries, values, strict=True):
        link = f"({_page(board)}#{entry.kind})"
        cells = [f"[{value:.3g}]{link}" if np.isfinite(value) else "" for value in row]
        rows.append([f"`{entry}`", *cells])
    return markdown(["", *(f"`{name}`" for name in names)], rows)


def _page(board: Board) -> str:
    return f"leaderboard/{board.name}.md"


def details(board: Board, lines: list[Line]) -> str:
    """The second page of a data set: of each method the command, and all of its runs."""
    parts = [
        f"# {board.title}: commands and runs",
        f"{GENERATED}\n\nAll runs behind the [leaderboard](../leaderboard.md): FD to the test "
        "images by sampler, for every strength and seed.",
    ]
    for line in sorted(lines, key=lambda line: line.entry.kind):
        kind, row = line.entry.kind, next(iter(line.entry.runs.values()))
        workdir = f"runs/leaderboard/{board.name}_{kind}"
        strengths = sorted((e for e in board.tested if e.kind == kind), key=lambda e: e.strength)
        single = [entry.of_seed(seed) for entry in strengths for seed in sorted(entry.runs)]
        names, values = distances(single)
        rows = []
        for entry, of_samplers in zip(single, values, strict=True):
            shown = [*(Line(entry, "").mean(key) for key in OF_RUNS), *of_samplers]
            cells = [f"{value:.3g}" if np.isfinite(value) else "" for value in shown]
            rows.append([f"{entry.strength:g}", str(*entry.runs), *cells])
        parts += [
            f"## {kind}",
            f"```sh\n{train_command(kind, row['config'])} \\\n    --workdir={workdir}\n"
            f"hsjax sample --workdir={workdir} --sampler={line.sampler} --out={workdir}.png\n```",
            markdown(["strength", "seed", *OF_RUNS.values(), *(f"`{n}`" for n in names)], rows),
        ]
    return "\n\n".join(parts) + "\n"


@own_settings()
def heat_map(path: Path, entries: list[Entry], footer: str) -> None:
    """Methods by samplers: the distances as colours and numbers."""
    names, values = distances(entries)
    figure, body = new_figure(0.9 + 0.27 * len(entries), footer)
    axes = body.subplots()
    colours = np.log10(values)
    axes.imshow(colours, cmap="viridis_r", aspect="auto")
    middle = np.nanmean([np.nanmin(colours), np.nanmax(colours)])
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = colours[i, j] > middle
            text = {"color": "white" if dark else "black", "fontsize": 8}
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", **text)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(entries)), [str(entry) for entry in entries])
    axes.tick_params(
        length=0, labelsize=8, top=True, bottom=False, labeltop=True, labelbottom=False
    )
    axes.spines[:].set_visible(False)
    save(figure, path)


@own_settings()
def fronts(path: Path, board: Board, lines: list[Line], footer: str, distance: str) -> None:
    """Error against distance of all strengths: own samples, and each line's fitted sampler.

    Entries that no other beats in both are numbered.
    """
    chosen = {line.entry.kind: line.sampler for line in lines}
    shown = {
        "own samples, no fit": [Line(entry, "own") for entry in board.tested],
        "samples of the best fitted distribution": [Line(e, chosen[e.kind]) for e in board.tested],
    }
    names = {method: name for name, methods in FAMILIES.items() for method in methods}
    families = {e.kind: names.get(settings.find(e.kind).method, "others") for e in board.tested}
    colours = dict(zip([*FAMILIES, "others"], LINES, strict=False))
    note = "lower left is better; lines join strengths"
    figure, body = new_figure(10.0, f"{note}\n{footer}")
    body, strip = body.subfigures(2, 1, height_ratios=(8.0, 0.2))
    labels, numbers = [], []
    for axes, (title, some) in zip(body.subplots(2, 1), shown.items(), strict=True):
        judged = [line for line in some if line.sampler in line.entry.samplers]
        points = [(x.mean("mse_sum"), x.mean(), x.entry) for x in judged]
        points.sort(key=lambda at: at[:2])
        for kind in dict.fromkeys(entry.kind for *_, entry in points):
            curve, family = [at for *at, entry in points if entry.kind == kind], families[kind]
            style = {"color": colours[family], "linewidth": 0.8, "markersize": 4}
            axes.plot(*zip(*curve, strict=True), "o-", **style)
            look = {"fontsize": 7, "path_effects": HALO, "textcoords": "offset points"}
            look |= {"color": colours[family], "va": "center_baseline"}
            labels.append(axes.annotate(kind, curve[-1], (8, 0), **look))
        lows = np.minimum.accumulate([np.inf, *(value for _, value, _ in points)])
        front = [point for point, low in zip(points, lows, strict=False) if point[1] < low]
        for i, (error, value, entry) in enumerate(front, 1):
            axes.plot(error, value, "o", color=colours[families[entry.kind]], markersize=11)
            text = {"color": "white", "fontsize": 7, "weight": "bold"}
            text |= {"ha": "center", "va": "center_baseline"}
            numbers.append(axes.text(error, value, f"{i}", **text))
        named = ", ".join(
            f"{i} {entry}".replace(" ", "\u00a0") for i, (*_, entry) in enumerate(front, 1)
        )
        heading = [title, *wrap(f"none is better in both: {named}", 100)]
        describe(axes, "\n".join(heading), y=distance)
        log_x(axes, [error for error, _, _ in points])
        log_y(axes, [value for _, value, _ in points])
        axes.margins(0.08)
    body.supxlabel("reconstruction error, MSE (μ), sum over an image's values", fontsize=10)
    handles = [
        Line2D([], [], marker="o", color=colours[f], label=f)
        for f in colours
        if f in families.values()
    ]
    strip.legend(handles=handles, loc="center", ncols=len(handles), fontsize=8, frameon=False)
    untangle(figure, labels, numbers)
    save(figure, path)


def about(board: Board) -> tuple[str, str]:
    """How the runs were trained and judged, in words, and the name of the distance."""
    config = board.config
    one = next(iter(board.tested[0].runs.values()))["numbers"]
    seeds = sorted({seed for entry in board.tested for seed in entry.runs})
    count = sum(len(entry.runs) for entry in board.tested)
    networks = len(one["generation"])
    distance = one["generation"][0]["distance"]
    words = (
        f"Latents of {config['model']['latent_dim']}, stages {tuple(config['model']['stages'])}, "
        f"{config['train']['epochs']} epochs, batches of {config['train']['batch_size']}; "
        f"{count} runs, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; "
        f"{distance}, {networks} feature network{'s' * (networks > 1)}, "
        f"{one['sample_count']} samples; BatchNorm: {one.get('batch_norm', 'running')} "
        f"statistics; strengths and fitted samplers chosen on "
        f"{'validation' if board.held_out else 'the same test'} images; {board.device}"
    )
    return words, distance


def section(board: Board, lines: list[Line], images: Path, costs: dict[str, float]) -> str:
    """The page's section on a data set, given the best fitted distributions; draws its figures."""
    words, distance = about(board)
    unfitted = choices(board, own)
    entries = [line.entry for line in lines]
    reference = {line.entry.kind: line.sampler for line in lines}.get("standard", "")
    front, heat = (images / f"leaderboard_{board.name}{kind}.png" for kind in ("_fronts", ""))
    fronts(front, board, lines, f"{board.title}; {words}", distance)
    heat_map(heat, entries, f"{board.title}; {words}")
    noise = [100 * spread(line.of("to_test") for line in some) for some in (unfitted, lines)]
    said = (
        f"From seed to seed a distance moves by {noise[0]:.0f} % (own), {noise[1]:.0f} % (fitted)."
        if any(noise)
        else "There is one seed of each, so near places may be noise."
    )
    return "\n\n".join(
        [
            f"## {board.title}",
            f"{words}. {said}",
            wishes(lines, unfitted),
            f"![Reconstruction error against distance](images/{front.name})",
            "### Samples of a fitted distribution",
            ranking(board, lines, reference, costs),
            "### Samples without a fit",
            ranking(board, unfitted, "own", costs),
            "### Every sampler",
            f"![Methods by samplers](images/{heat.name})",
            matrix(board, entries),
        ]
    )


@command
def main() -> None:
    """Read the lines, write the pages and figures."""
    parser = argparse.ArgumentParser(
        prog="hsjax leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="output of sweeps")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("leaderboard.md"),
        metavar="FILE",
        help="the page; figures go to images/ beside it, a page of each data set to leaderboard/ "
        "(%(default)s)",
    )
    parser.add_argument(
        "--costs", type=Path, metavar="FILE", help="JSON file of `python -m benchmarks.methods`"
    )
    arguments = parser.parse_args()
    found, out = boards(sweep.read(arguments.files)), arguments.out
    costs = {}
    if arguments.costs:
        try:
            rows = json.loads(arguments.costs.read_text())["rows"]
            costs = {row["kind"]: row["over_standard"]["median"] for row in rows}
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"--costs={arguments.costs}: no file of benchmarks.methods") from error
    images, pages = out.parent / "images", out.parent / "leaderboard"
    pages.mkdir(parents=True, exist_ok=True)
    kept = out.read_text().partition(GENERATED)[0] if out.exists() else LEGEND
    parts = [kept.rstrip(), GENERATED]
    for board in found:
        lines = choices(board, fitted)
        parts.append(section(board, lines, images, costs))
        (pages / f"{board.name}.md").write_text(details(board, lines))
    out.write_text("\n\n".join(parts) + "\n")
    tell(f"{out}: {', '.join(board.name for board in found)}")
