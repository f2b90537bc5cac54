"""The paper's pictures, drawn from arrays and numbers to PNG files; nothing is computed on a model.

Every file is 8 inches wide at 150 dpi, so that its texts stay legible on a page of 800 pixels. The
canvas is Agg without pyplot: no display is needed. Pictures are drawn with matplotlib's defaults;
the user's settings have no effect and are not changed.
"""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from math import lgamma, pi
from pathlib import Path
from textwrap import wrap
from unittest import mock

import numpy as np

with mock.patch.dict(os.environ):
    # Only pyplot needs this backend, and without its package importing matplotlib would fail.
    _backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib
if _backend:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend  # for a notebook that draws with pyplot later

from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba_array
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hsjax.logs import SPLITS

WIDTH = 8.0  # inches
# Okabe and Ito's palette without its yellow, which a thin line on white doesn't show.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = LINES = (
    *("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"),
)
# Paul Tol's "muted", whose nine colours remain distinct with any colour vision, and a grey.
CLASSES = (
    *("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#888888"),
)
_SETTINGS = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Use matplotlib's defaults inside; also a decorator for a function that draws."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(height: float, footer: str) -> tuple[Figure, SubFigure]:
    """A figure with room of `height` inches to draw in, above a footer wrapped to its width."""
    lines = [part for line in footer.splitlines() for part in wrap(line, 110) or [""]]
    foot = 0.1 + 0.15 * len(lines)
    figure = Figure(figsize=(WIDTH, height + foot), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    body, strip = figure.subfigures(2, 1, height_ratios=(height, foot))
    text = {"fontsize": 8, "color": "0.4", "ha": "center", "va": "center", "parse_math": False}
    strip.text(0.5, 0.5, "\n".join(lines), **text)
    return figure, body


def subplots(body: SubFigure, count: int, most: int, **kwargs) -> list[Axes]:
    """`count` axes in as few rows as possible, at most `most` in each, evenly filled."""
    rows, columns = rows_and_columns(count, most)
    axes = body.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return list(axes[:count])


def rows_and_columns(count: int, most: int) -> tuple[int, int]:
    """The shape of the grid of `subplots`."""
    rows = -(-count // most)
    return rows, -(-count // rows)


def describe(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """A title, axis labels and the look that all curves share."""
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def ratio(values) -> float:
    """The largest finite value over the smallest; 0 if one isn't positive or there are none."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return values.max() / values.min() if len(values) and values.min() > 0 else 0.0


def log_y(axes: Axes, values) -> None:
    """A log scale for y, with ticks for these values, of which no finite one is below 0."""
    axes.set_yscale("log")
    _log_ticks(axes.yaxis, values)


def log_x(axes: Axes, values) -> None:
    """The same for x."""
    axes.set_xscale("log")
    _log_ticks(axes.xaxis, values)


def _log_ticks(axis, values) -> None:
    if ratio(values) < 3:  # there may be no round number to a power of ten in it
        locator = MaxNLocator(5, steps=(1, 2, 5, 10))
    else:
        choices = ((10, (1, 2, 3, 5)), (1000, (1, 2, 5)), (np.inf, (1,)))
        subs = next(subs for most, subs in choices if ratio(values) <= most)
        locator = LogLocator(subs=subs, numticks=12)
    axis.set_major_locator(locator)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def untangle(figure: Figure, labels: list[Annotation], others: Sequence[Text]) -> None:
    """Move labels, whose offsets are in points, up or down until they cover no other text."""
    figure.draw_without_rendering()
    taken = [text.get_window_extent() for text in others]
    for label in sorted(labels, key=lambda label: label.get_window_extent().y0):
        x, y = label.xyann
        for shift in sorted(range(-60, 61, 3), key=abs):
            label.xyann = (x, y + shift)
            box = label.get_window_extent()
            if not any(box.overlaps(one) for one in taken):
                break
        taken.append(box)


def save(figure: Figure, path: Path) -> None:
    """Write the PNG under another name first: whoever looks at `path` finds a whole picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """[count, H, W, C] -> one image of rows of `columns`, a white pixel apart; grey becomes RGB.

    Images are uint8, or floating-point in [0, 1]. An incomplete last row is filled up with white;
    values that are no number become black.
    """
    images = np.asarray(images)
    images = images / np.float32(255.0 if images.dtype == np.uint8 else 1.0)
    images = np.nan_to_num(images, posinf=1.0, neginf=0.0).clip(0.0, 1.0)
    images = np.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[3] == 1 else images
    missing = -len(images) % columns
    pad = ((0, missing), (0, 1), (0, 1), (0, 0))
    images = np.pad(images, pad, constant_values=1.0)
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])[:-1, :-1]


@own_settings()
def panels(path: Path, images: dict[str, np.ndarray], footer: str, columns: int = 8) -> None:
    """Figure 1a, {title: images as in `tile`}: originals, reconstructions, new samples."""
    rows, across = rows_and_columns(len(images), 4)
    tiles = {title: tile(some, columns) for title, some in images.items()}
    # One size for all titles, so small that the longest fits on a line.
    size = int(np.clip(1020 / across / max(map(len, images)), 8, 10))
    tallest = max(image.shape[0] / image.shape[1] for image in tiles.values())
    figure, body = new_figure(rows * (0.95 * WIDTH / across * tallest + 0.45), footer)
    for axes, (title, image) in zip(subplots(body, len(tiles), 4), tiles.items(), strict=True):
        axes.imshow(image)
        lines = "\n".join(wrap(title, 1020 // size // across))
        axes.set_title(lines, fontsize=size, parse_math=False)
        axes.axis("off")
    save(figure, path)


@own_settings()
def interpolations(
    path: Path, images: np.ndarray, footer: str, labels: np.ndarray | None = None
) -> None:
    """Decoded paths between two test images, [rows, columns, H, W, C]; their classes [rows, 2]."""
    columns, height, width, channels = np.shape(images)[1:]
    image = tile(np.reshape(images, (-1, height, width, channels)), columns)
    inches = 0.9 * WIDTH * image.shape[0] / image.shape[1]
    figure, body = new_figure(min(inches, 10.0 if len(images) > 1 else 3.0) + 0.8, footer)
    axes = body.subplots()
    axes.imshow(image)
    title = "Slerp between the latents (μ) of two test images, one pair per row"
    axes.set_title(title, fontsize=10, pad=10)
    ends = {0: "reconstruction", columns - 1: "reconstruction"}
    for column in ends:
        frame = {"edgecolor": RED, "linewidth": 2, "fill": False, "clip_on": False}
        corner = (column * (width + 1) - 1, -1)
        axes.add_patch(Rectangle(corner, width + 1, image.shape[0] + 1, **frame))
    axes.set_xticks([c * (width + 1) + (width - 1) / 2 for c in ends], ends.values(), color=RED)
    axes.set_yticks([])
    if labels is not None:
        middles = [row * (height + 1) + (height - 1) / 2 for row in range(len(images))]
        axes.set_yticks(middles, [f"class {label}" for label in labels[:, 0]])
        other = axes.secondary_yaxis("right")
        other.set_yticks(middles, [f"class {label}" for label in labels[:, 1]])
        other.tick_params(length=0, labelsize=10, pad=8)
        other.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10, pad=8)
    axes.spines[:].set_visible(False)
    save(figure, path)


def coloured(points: np.ndarray, labels: np.ndarray | None):
    """What the scatter plots share: points ready to draw, with their colours and a key.

    Rows that aren't finite are left out, and the order is shuffled, so no class hides the rest.

    Returns:
      (points [kept, d], labels [kept] | None, arguments of `scatter`, the key for `_add_key`).
    """
    points = np.asarray(points, float)
    kept = np.flatnonzero(np.isfinite(points).all(axis=1))
    kept = np.random.default_rng(0).permutation(kept)
    points, labels = points[kept], None if labels is None else np.asarray(labels)[kept]
    # Area and opacity shrink with the count, so that 10,000 points don't merge into a blot.
    few = len(points) < 1000
    style = {"s": np.clip(4e4 / max(len(points), 1), 5.0, 30.0), "linewidths": 0}
    if labels is None:
        colours, key = to_rgba_array([BLUE] * len(points)), None
    elif len(names := np.unique(labels)) <= len(CLASSES):
        colours = to_rgba_array(CLASSES)[np.searchsorted(names, labels)]
        dot = {"linestyle": "none", "marker": "o", "markersize": 7}
        key = [
            Line2D([], [], color=c, label=f"{name}", **dot)
            for c, name in zip(CLASSES, names, strict=False)
        ]
    else:
        key = ScalarMappable(Normalize(names[0], names[-1]), colormaps["viridis"])
        colours = key.to_rgba(labels)
    return points, labels, style | {"c": colours, "alpha": 0.9 if few else 0.55}, key


def _add_key(body: SubFigure, axes, key) -> None:
    """A legend of classes beside the axes, or a colour bar where they are too many."""
    if isinstance(key, ScalarMappable):
        body.colorbar(key, ax=axes, label="class", shrink=0.6, ticks=MaxNLocator(integer=True))
    elif key:
        text = {"fontsize": 9, "title_fontsize": 9, "frameon": False}
        body.legend(handles=key, title="class", loc="outside right center", **text)


def _wire() -> np.ndarray:
    """Circles of latitude and longitude every 30 degrees, [circles, 181, 3]."""
    turn = np.linspace(0.0, 2 * pi, 181)
    circle = np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], axis=-1)
    height = np.sin(np.radians(np.arange(-60, 61, 30)))[:, None, None]
    parallels = np.sqrt(1 - height**2) * circle + height * np.array([0.0, 0.0, 1.0])
    angle = np.radians(np.arange(0, 180, 30))[:, None]
    across = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1)
    meridians = circle[:, :1] * across + circle[:, 1:2] * np.array([0.0, 0.0, 1.0])
    return np.concatenate([parallels, meridians])


def hemisphere(axes: Axes, view: np.ndarray, points: np.ndarray, style: dict) -> int:
    """Orthographic picture of S² from the direction `view`: only what is on the near side.

    Returns:
      how many of the points [count, 3] that is.
    """
    up = np.array([0.0, 0.0, 1.0]) if abs(view[2]) < 0.95 else np.array([0.0, 1.0, 0.0])
    right = np.cross(up, view)
    right /= np.linalg.norm(right)
    screen = np.stack([right, np.cross(view, right)], axis=-1)  # [3, 2]
    wire = _wire()
    lines = np.where((wire @ view >= 0)[..., None], wire @ screen, np.nan)
    axes.plot(*np.moveaxis(lines, -1, 0).swapaxes(1, 2), color="0.85", linewidth=0.6, zorder=1)
    turn = np.linspace(0.0, 2 * pi, 361)
    axes.plot(np.cos(turn), np.sin(turn), color="0.6", linewidth=0.9, zorder=1)
    near = points @ view >= 0
    style = style | {"c": style["c"][near]}
    axes.scatter(*(points[near] @ screen).T, **style, zorder=2)
    for index, axis in enumerate(np.eye(3)):
        tip = axis * (1.0 if axis @ view >= 0 else -1.0)  # the near end of each axis
        text = f"{'+' if tip[index] > 0 else '−'}{index + 1}"
        # Below the tip, lest it hide the points there; inwards at the rim.
        side = tip @ right
        align = "center" if abs(side) < 0.9 else "right" if side > 0 else "left"
        place = {"xytext": (0, -5), "textcoords": "offset points", "ha": align, "va": "top"}
        look = {"fontsize": 11, "weight": "bold", "color": "0.25", "path_effects": HALO}
        axes.annotate(text, tip @ screen, **place, **look, annotation_clip=True, clip_on=True)
    axes.set(xlim=(-1.04, 1.04), ylim=(-1.04, 1.04), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return int(near.sum())


def outlook(points: np.ndarray) -> tuple[np.ndarray, bool]:
    """Where to look at unit vectors [count, 3] from, and whether they form an island.

    That is their mean direction if they do, else (1, 1, 1).
    """
    centre = points.sum(axis=0) / max(len(points), 1)
    concentration = np.linalg.norm(centre)  # 1 for a single point, 0 for an even spread
    island = bool(concentration > 0.3)
    return (centre / concentration if island else np.full(3, 3**-0.5)), island


@own_settings()
def groups_on_sphere(
    path: Path, points: np.ndarray, labels: np.ndarray | None, footer: str
) -> None:
    """Figure 1b: latents averaged in three groups, unit vectors [count, 3], coloured by class.

    Two orthographic views from opposite sides, each of its near half only, so that far points never
    look near. The first is centred on the points where they form an island, on (1, 1, 1) otherwise;
    a small island is shown a third time, enlarged.
    """
    points, labels, style, key = coloured(points, labels)
    total = max(len(points), 1)
    view, island = outlook(points)
    radius = np.quantile(np.linalg.norm(points - view, axis=1), 0.995) if island else 2.0
    enlarged = radius < 0.6
    figure, body = new_figure(3.3 if enlarged else 4.4, footer)
    grid = subplots(body, 3 if enlarged else 2, 3)
    numbers = ", ".join(f"{x:.2f}" for x in view).replace("-", "−")
    views = {f"their mean ({numbers})" if island else "(1, 1, 1)": view, "behind": -view}
    for axes, (name, direction) in zip(grid, views.items(), strict=False):
        share = 100 * hemisphere(axes, direction, points, style) / total
        axes.set_title(f"from {name}\n{share:.3g} % of the points", fontsize=9)
    if enlarged:
        hemisphere(grid[2], view, points, style)
        span = max(1.15 * radius, 0.02)
        grid[2].set(xlim=(-span, span), ylim=(-span, span))
        grid[2].set_title(f"from their mean\nenlarged {1 / span:.2g} times", fontsize=9)
        grid[2].spines[:].set(visible=True, color="0.6")
        frame = {"edgecolor": "0.6", "linewidth": 0.8, "fill": False}
        grid[0].add_patch(Rectangle((-span, -span), 2 * span, 2 * span, **frame))
    unlabelled = ", no labels" if labels is None else ""
    title = f"{len(points):,} latents averaged in three groups (axes 1, 2, 3), on S²{unlabelled}"
    body.suptitle(title, fontsize=11)
    _add_key(body, grid, key)
    save(figure, path)


def plane(axes: Axes, points: np.ndarray, labels: np.ndarray | None, style: dict, key) -> None:
    """Points of the plane as `coloured` gives them, with the names of their classes."""
    axes.scatter(*points.T, **style)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.margins(0.03)
    axes.spines[:].set_color("0.8")
    if labels is not None and isinstance(key, list) and key:
        # A class's name at its point nearest to its median, if all of them find a place apart.
        groups = [points[labels == name] for name in np.unique(labels)]
        places = [g[np.argmin(np.linalg.norm(g - np.median(g, 0), axis=1))] for g in groups]
        apart = [np.linalg.norm(p - q) for i, p in enumerate(places) for q in places[:i]]
        if min(map(len, groups)) >= 20 and min(apart, default=np.inf) > 0.035 * np.ptp(points):
            text = {"ha": "center", "va": "center", "weight": "bold", "path_effects": HALO}
            for name, place in zip(np.unique(labels), places, strict=True):
                axes.text(*place, f"{name}", fontsize=11, **text)


@own_settings()
def tsne(path: Path, points: np.ndarray, labels: np.ndarray | None, footer: str) -> None:
    """Figure 1c: a t-SNE projection of the latents, [count, 2], coloured by class."""
    points, labels, style, key = coloured(points, labels)
    figure, body = new_figure(5.8, footer)
    axes = body.subplots()
    plane(axes, points, labels, style, key)
    unlabelled = ", no labels" if labels is None else ""
    axes.set_title(f"t-SNE of {len(points):,} latents{unlabelled}", fontsize=11)
    axes.set_xlabel("t-SNE axes and distances have no unit", fontsize=9, color="0.4")
    _add_key(body, axes, key)
    save(figure, path)


@own_settings()
def angle_profile(path: Path, mean: np.ndarray, spread: np.ndarray, footer: str) -> None:
    """Mean and standard deviation over the data of each cos φ_k, [n-1], beside the prior's.

    Bars are cut off at -1 and 1, the bounds of a cosine.
    """
    mean, spread = (np.where(np.isfinite(x), x, np.nan) for x in (mean, spread))
    low, high = np.clip([mean - spread, mean + spread], -1.0, 1.0)
    k, n = np.arange(1, len(mean) + 1), len(mean) + 1
    edges = np.append(k - 0.5, n - 0.5)
    diagonal = (n - k + 1.0) ** -0.5
    figure, body = new_figure(4.2, footer)
    axes = body.subplots()
    band = {"fill": True, "edgecolor": "none"}
    prior = "prior N(0, I): 0 ± 1/√(n−k+1)"
    axes.stairs(diagonal, edges, baseline=-diagonal, color="0.87", label=prior, **band)
    axes.axhline(0.0, color="0.6", linewidth=1)
    reference = {"baseline": None, "color": "0.2", "linewidth": 0.9, "linestyle": "dashed"}
    axes.stairs(diagonal, edges, label="diagonal direction: 1/√(n−k+1)", **reference)
    if n > 50:
        fill = {"color": BLUE, "alpha": 0.35, "label": "data: ± std"}
        axes.stairs(high, edges, baseline=low, **band | fill)
        axes.plot(k, mean, color=BLUE, linewidth=1.4, label="data: mean")
    else:
        bars = {"fmt": "o", "markersize": 5, "elinewidth": 1.6, "capsize": 3}
        reach = np.abs([low - mean, high - mean])
        axes.errorbar(k, mean, reach, color=BLUE, label="data: mean ± std", **bars)
    axes.set_xlim(edges[0], edges[-1])
    reach = np.nan_to_num(np.concatenate([low, high, diagonal, -diagonal]))
    axes.set_ylim(1.05 * reach.min(), 1.05 * reach.max())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    describe(axes, f"Angles of the latents, n = {n}", "k, index of the angle φₖ", "cos φₖ")
    columns = 2 if n > 50 else 3
    body.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    save(figure, path)


@own_settings()
def overlap_histogram(
    path: Path, edges: np.ndarray, counts: np.ndarray, footer: str, *, dimension: int
) -> None:
    """Cosines between pairs of latents, as a density, beside that of uniform directions in R^n.

    edges: [bins + 1] within [-1, 1]; counts: [bins]; dimension: n, at least 2.
    """
    edges, counts = np.asarray(edges, float), np.nan_to_num(np.asarray(counts, float))
    density = counts / (max(counts.sum(), 1.0) * np.diff(edges))
    # (1 - t²)^((n-3)/2) / B(1/2, (n-1)/2); its ends are left out, where n = 2 is infinite.
    t = np.linspace(-1.0, 1.0, 4001)[1:-1]
    log_beta = lgamma(0.5) + lgamma((dimension - 1) / 2) - lgamma(dimension / 2)
    uniform = np.exp((dimension - 3) / 2 * np.log1p(-(t**2)) - log_beta)
    figure, body = new_figure(4.0, footer)
    axes = body.subplots()
    fill = {"fill": True, "color": BLUE, "alpha": 0.5}
    centres = (edges[1:] + edges[:-1]) / 2
    mean = counts @ centres / max(counts.sum(), 1.0)
    std = (counts @ (centres - mean) ** 2 / max(counts.sum(), 1.0)) ** 0.5
    label = f"{counts.sum():,.0f} pairs of latents: {mean:.2f} ± {std:.2f}".replace("-", "−")
    axes.stairs(density, edges, label=label, **fill)
    label = f"uniform directions, n = {dimension}: 0 ± {dimension**-0.5:.2f}"
    axes.plot(t, uniform, color=BLACK, linewidth=1.4, label=label)
    filled = np.flatnonzero(counts)
    ends = [edges[filled[0]], edges[filled[-1] + 1]] if len(filled) else [0.0, 0.0]
    width = 5 * dimension**-0.5  # five standard deviations of the uniform distribution
    axes.set_xlim(max(min(ends[0], -width), -1.0), min(max(ends[1], width), 1.0))
    axes.set_ylim(bottom=0.0)
    describe(axes, "Overlap of the latents", "cosine between two latents", "density")
    body.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    save(figure, path)


@own_settings()
def roc(path: Path, curves: dict[str, dict[str, tuple]], footer: str) -> None:
    """ROC curves of alarms for images out of distribution, {title: {label: (false, true)}}.

    The grey lines are where the two kinds of FPR95 are read.
    """
    figure, body = new_figure(3.2 if len(curves) > 1 else 4.2, footer)
    for axes, (title, lines) in zip(subplots(body, len(curves), 2), curves.items(), strict=True):
        for (label, (false, true)), colour in zip(lines.items(), LINES, strict=False):
            axes.plot(false, true, color=colour, linewidth=1.4, label=label)
        grey = {"color": "0.5", "linewidth": 0.9}
        axes.axhline(0.95, **grey, linestyle="dashed", label="FPR95 ood:\nfalse rate here")
        axes.axvline(0.05, **grey, linestyle="dotted", label="FPR95 in:\n1 − true rate here")
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.9)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        shown = "\n".join(wrap(title, 45 if len(curves) > 1 else 90))
        describe(axes, shown, "false: share of images in distribution", "true: share of the others")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    save(figure, path)


@own_settings()
def topology(path: Path, found: dict[str, dict], footer: str) -> None:
    """Persistence over that of a Gaussian, of `hsjax.metrics.topology` by name of the latents.

    A dot is a ratio of means, its bar the deviation over subsamples; what has none is left out.
    """
    panels = {
        "h0_total": "total of H0 (components)",
        "h1_longest": "longest of H1 (loops)",
        "h1_total": "total of H1 (loops)",
    }
    figure, body = new_figure(0.28 * len(found) + 1.5, footer)
    heights = np.arange(len(found))
    for axes, (key, title) in zip(subplots(body, 3, 3, sharey=True), panels.items(), strict=True):
        axes.axvline(1.0, color=BLACK, linewidth=1.2, linestyle="dashed")
        values, spreads = (
            np.array([row[key][name] for row in found.values()], float)
            for name in ("ratio", "ratio_spread")
        )
        colours = [RED if name == "embeddings" else BLUE for name in found]
        bars = {"ecolor": colours, "elinewidth": 2, "fmt": "none"}
        axes.errorbar(values, heights, xerr=spreads, **bars)
        axes.scatter(values, heights, c=colours, s=30, zorder=3)
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        describe(axes, title, "over a Gaussian's")
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks(heights, found)
    title = "Persistence of the latents over that of a Gaussian (1: no more structure)"
    body.suptitle(title, fontsize=11)
    save(figure, path)


@own_settings()
def training_curves(path: Path, rows: list[dict], footer: str) -> None:
    """A run's metrics.jsonl over its epochs, each of the losses and what steers them by itself.

    Dots are of images that aren't trained on; a dotted line is where β last changed.
    """
    panels = {
        "loss": ("loss",),
        "MSE, sum over an image": ("mse",),
        "regulariser (before β)": ("regulariser",),
        "terms of the regulariser": (),
        "β": ("beta",),
        "learning rate × 1000": ("learning_rate",),
    }
    others = {"epoch", "step", "seconds", "images_per_second", *itertools.chain(*panels.values())}
    kind = next((split for split in SPLITS for row in rows if f"{split}_loss" in row), "no")
    others |= {key for row in rows for key in row if key.startswith(f"{kind}_")}
    panels["terms of the regulariser"] = tuple(key for key in rows[-1] if key not in others)
    epochs = [row["epoch"] for row in rows]
    changes = [b["epoch"] for a, b in itertools.pairwise(rows) if a.get("beta") != b.get("beta")]
    curves = {
        title: {key: np.array([row.get(key, np.nan) for row in rows], float) for key in keys}
        for title, keys in panels.items()
        if any(key in row for row in rows for key in keys)
    }
    footer += f"; dots: {kind} images" if kind in SPLITS else ""
    footer += "; dotted: β changed last" if changes else ""
    figure, body = new_figure(2.2 * rows_and_columns(len(curves), 3)[0] + 0.5, footer)
    for axes, (title, lines) in zip(subplots(body, len(curves), 3), curves.items(), strict=True):
        for (key, values), colour in zip(lines.items(), LINES, strict=False):
            marker = "o" if len(rows) <= 20 else None
            line = {"color": colour, "linewidth": 1.4, "marker": marker, "markersize": 3.5}
            axes.plot(epochs, values, label=key, **line)
        watched = f"{kind}_{next(iter(lines))}"
        dots = np.array([(row["epoch"], row[watched]) for row in rows if watched in row])
        if len(dots) and len(lines) == 1:
            axes.plot(*dots.T, "o", color=LINES[1], markersize=4)
            lines["dots"] = dots[:, 1]
        describe(axes, title, "epoch")
        if changes:
            axes.axvline(changes[-1], color="0.6", linewidth=1.0, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        if title in ("β", "learning rate × 1000"):
            axes.set_ylim(bottom=0.0)
            unit = 1.0 if title == "β" else 1000.0
            axes.yaxis.set_major_formatter(lambda y, _, unit=unit: f"{unit * y:g}")
        elif ratio(every := np.concatenate([*lines.values()])) > 3:
            log_y(axes, every)
        if len(lines.keys() - {"dots"}) > 1:
            text = {"title": title, "title_fontsize": 9, "fontsize": 9, "frameon": False}
            handles = axes.get_legend_handles_labels()[0]
            body.legend(handles=handles, loc="outside lower center", ncols=4, **text)
    save(figure, path)
