"""Figure 1: trained runs side by side, drawn from what their evaluation wrote.

    python -m hsjax.compare runs/mnist_standard:prior runs/mnist_compressed:vmf

A run is a workdir, optionally followed by a colon and the sampler to be shown
(the run's sample.sampler if not given). From top to bottom: test images, their
reconstructions, new samples; the latents averaged in three groups, on the
sphere from two sides; the latents by t-SNE, with the k-NN accuracy.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np

from hsjax import figures
from hsjax.config import read_record
from hsjax.errors import UserError
from hsjax.files import read_npz
from hsjax.terminal import command, tell

COLUMNS, ROWS = 10, 3  # of images


class Shown(NamedTuple):
    """What is drawn of a run."""

    title: str
    sampler: str
    numbers: dict[str, Any]
    arrays: dict[str, np.ndarray]


def read(text: str) -> Shown:
    """The run of "WORKDIR" or "WORKDIR:SAMPLER".

    Raises:
      UserError: no such evaluated run, or no samples of that sampler.
    """
    folder, _, sampler = text.partition(":")
    path = Path(folder)
    config, numbers = (read_record(path / name) for name in ("config.json", "metrics.json"))
    if config is None or numbers is None:
        raise UserError(f"{folder} holds no judged run: train it, or judge it with --mode=evaluate")
    sampler = sampler or config["sample"]["sampler"]
    wanted = ("test images", "reconstructions", f"samples: {sampler}", "groups", "tsne")
    arrays = read_npz(path / "embeddings.npz", (*wanted, "test_labels"))
    if missing := [name for name in wanted[:3] if name not in arrays]:
        raise UserError(
            f"{folder} has no {missing[0]}: judge it again, with that sampler among "
            "evaluate.samplers"
        )
    title = (
        f"{path.name}\nn = {config['model']['latent_dim']}, epoch {numbers['epoch']}, "
        f"MSE {numbers['mse_sum']:.3g}"
    )
    return Shown(title, sampler, numbers, arrays)


@figures.own_settings()
def draw(path: Path, runs: list[Shown], footer: str) -> None:
    """The figure of some runs, a column each."""
    shape = runs[0].arrays["test images"].shape
    width = 0.94 * figures.WIDTH / len(runs)
    strip = width * ROWS / COLUMNS * shape[1] / shape[2]
    titles = [
        [part for line in run.title.splitlines() for part in wrap(line, int(11 * width))]
        for run in runs
    ]
    lines = max(map(len, titles))
    shown = [row for row in VIEWS if any(row.name in run.arrays for run in runs)]
    heights = [0.3 + 0.2 * lines + 3 * (strip + 0.3), *(row.height * width + 0.6 for row in shown)]
    figure, body = figures.new_figure(sum(heights), footer)
    columns = np.atleast_1d(body.subfigures(1, len(runs)))
    for column, run, title in zip(columns, runs, titles, strict=True):
        images, *parts = np.atleast_1d(column.subfigures(len(heights), 1, height_ratios=heights))
        column.suptitle("\n".join([*title, *" " * (lines - len(title))]), fontsize=10)
        _images(images, run)
        labels = run.arrays.get("test_labels")
        for part, row in zip(parts, shown, strict=True):
            if row.name in run.arrays:
                points = run.arrays[row.name]
                of_points = None if labels is None else labels[: len(points)]
                row.show(part.subplots(1, row.panels), run, points, of_points)
    figures.save(figure, path)


def _images(body, run: Shown) -> None:
    names = {
        "test images": "(a) x",
        "reconstructions": "reconstructions of x",
        f"samples: {run.sampler}": f"new, {run.sampler}",
    }
    for axes, (key, name) in zip(body.subplots(3), names.items(), strict=True):
        axes.imshow(figures.tile(run.arrays[key][: COLUMNS * ROWS], COLUMNS))
        axes.set_title(name, fontsize=9)
        axes.axis("off")


def _sphere(pair, _, points, labels) -> None:
    points, _, style, _ = figures.coloured(points, labels)
    view, _ = figures.outlook(points)
    for axes, way, name in zip(pair, (view, -view), ("(b) front", "back"), strict=True):
        share = 100 * figures.hemisphere(axes, way, points, style) / max(len(points), 1)
        axes.set_title(f"{name}, {share:.0f} %", fontsize=8)


def _plane(axes, run: Shown, points, labels) -> None:
    figures.plane(axes, *figures.coloured(points, labels))
    accuracy = run.numbers.get("knn_accuracy")
    known = f", k-NN accuracy {accuracy:.3f}" if accuracy is not None else ""
    axes.set_title(f"(c) t-SNE{known}", fontsize=9)


class _View(NamedTuple):
    """A row of the figure below the images."""

    name: str  # of its points in embeddings.npz
    show: Callable[..., None]
    panels: int
    height: float  # over the width of a column


VIEWS = (_View("groups", _sphere, 2, 0.5), _View("tsne", _plane, 1, 1.0))


@command
def main() -> None:
    """Read the runs, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="WORKDIR[:SAMPLER]")
    parser.add_argument(
        "--out", type=Path, default=Path("figure1.png"), metavar="FILE", help="(%(default)s)"
    )
    arguments = parser.parse_args()
    runs = [read(text) for text in arguments.runs]
    modes = dict.fromkeys(run.numbers.get("batch_norm", "running") for run in runs)
    footer = f"MSE: sum over an image's values. BatchNorm: {', '.join(modes)} statistics."
    draw(arguments.out, runs, footer)
    tell(f"figure: {arguments.out}")


if __name__ == "__main__":
    main()
