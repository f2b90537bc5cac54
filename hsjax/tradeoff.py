"""Figure 2: reconstruction error against Fréchet distance."""

from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import numpy as np

from hsjax.figures import (
    HALO,
    LINES,
    Axes,
    Line2D,
    describe,
    log_y,
    new_figure,
    own_settings,
    ratio,
    rows_and_columns,
    save,
    subplots,
)

MARKERS = "osD^v"


class Curve(NamedTuple):
    """Means over the seeds at each point of a curve, in order, and their standard deviations."""

    along: np.ndarray  # [points] n or strength
    mse: np.ndarray  # [points]
    distance: np.ndarray  # [points]
    mse_spread: np.ndarray  # [points], 0 where there is one seed
    distance_spread: np.ndarray  # [points]


def average_seeds(rows: list[dict], sampler: str, join: str) -> dict[str, Curve]:
    """{label: Curve} of the rows with this sampler, averaged over seeds.

    Rows whose MSE or distance isn't finite are left out.
    """
    found: dict[str, dict] = {}
    for row in rows:
        pair = row["mse"], row["distances"].get(sampler, np.nan)
        if np.isfinite(pair).all():
            found.setdefault(row["label"], {}).setdefault(row[join], []).append(pair)
    curves = {}
    for label, points in found.items():
        along = sorted(points)
        means = np.array([np.mean(points[p], axis=0) for p in along])
        spreads = [np.std(points[p], axis=0, ddof=min(len(points[p]) - 1, 1)) for p in along]
        curves[label] = Curve(np.array(along), *means.T, *np.array(spreads).T)
    return curves


@own_settings()
def tradeoff(
    path: Path,
    rows: list[dict],
    footer: str,
    *,
    distance_name: str,
    join: str = "n",
    useful: float | None = None,
) -> None:
    """Figure 2: reconstruction error against the distance of samples, a panel per sampler.

    Args:
      path: of the PNG.
      rows: {"label", "style", "n", "seed", "mse" (summed over an image), "distances": {sampler:
        float}}; seeds are averaged, their standard deviation (std) becomes error bars.
      footer: a line below the panels.
      distance_name: what the distances are, the label of the y axis.
      join: the entry of the rows that a curve runs along, "n" or "strength". It is written at the
        curve's ends ("n") or at each point ("strength").
      useful: the region of errors below this is shaded.
    """
    samplers = list(dict.fromkeys(name for row in rows for name in row["distances"])) or ["no runs"]
    styles = {
        label: {
            "color": LINES[i % len(LINES)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": next(row["style"] for row in rows if row["label"] == label),
        }
        for i, label in enumerate(dict.fromkeys(row["label"] for row in rows))
    }
    panels = {sampler: average_seeds(rows, sampler, join) for sampler in samplers}
    distances = {
        sampler: [y for curve in curves.values() for y in curve.distance]
        for sampler, curves in panels.items()
    }
    logarithmic = ratio(np.concatenate([*distances.values()])) > 10
    alone = len({row[join] for row in rows}) < 2  # then a note says it once
    notes = ["lower left is better", "bars: ± std over seeds"]
    if len(samplers) > 1:
        notes.append(f"each panel has its own {'log ' if logarithmic else ''}y axis")
    if useful:
        reached = any(row["mse"] < useful for row in rows)
        about = "shaded:" if reached else "no run has"
        notes.append(f"{about} MSE < {useful:.3g}, which the paper calls useful")
    if not alone:
        notes.append("numbers at the ends: n" if join == "n" else f"numbers: {join}")
    if join != "n" or alone:
        notes.append("n = " + ", ".join(f"{n}" for n in sorted({row["n"] for row in rows})))
    lost = sum(not np.isfinite([row["mse"], *row["distances"].values()]).all() for row in rows)
    if lost:
        notes.append(f"{lost} of {len(rows)} runs have a value that isn't finite, not drawn")
    down, _ = rows_and_columns(len(samplers), 3)
    height = 4.4 if len(samplers) == 1 else 3.4
    heights = height * down + 0.2, 0.1 + 0.21 * -(-len(styles) // 3)
    figure, body = new_figure(sum(heights), "; ".join(notes) + "\n" + footer)
    body, strip = body.subfigures(2, 1, height_ratios=heights)
    body.supxlabel("reconstruction MSE, summed over an image", fontsize=10)
    body.supylabel("\n".join(wrap(distance_name, 45 * down)), fontsize=10, parse_math=False)
    handles = [Line2D([], [], label=label, **style) for label, style in styles.items()]
    text = {"fontsize": 9, "frameon": False, "handlelength": 3.5}
    strip.legend(handles=handles, loc="center", ncols=3, **text)
    grid = subplots(body, len(samplers), 3, sharex=True)
    for axes, sampler in zip(grid, samplers, strict=True):
        describe(axes, sampler)
        axes.tick_params(labelbottom=True)
        axes.margins(0.12)
        for label, curve in panels[sampler].items():
            bars = {"xerr": curve.mse_spread, "yerr": curve.distance_spread, "elinewidth": 0.8}
            axes.errorbar(curve.mse, curve.distance, **bars, **styles[label], markersize=5)
        if logarithmic:
            log_y(axes, distances[sampler])
    if useful and reached:
        left, right = grid[0].get_xlim()  # that all panels share
        for axes in grid:
            axes.axvspan(left, min(useful, right), color="0.93", zorder=0)
        grid[0].set_xlim(left, right)
    if not alone:
        figure.draw_without_rendering()  # places the axes, which decides what is beside what
        for axes, curves in zip(grid, panels.values(), strict=True):
            _number(axes, curves, styles, ends_only=join == "n")
    save(figure, path)


def _number(axes: Axes, curves: dict[str, Curve], styles: dict, ends_only: bool) -> None:
    """Write each point's `along` beside it, where fewest lines, points and other numbers are."""
    paths, taken = {}, []  # in points (1/72 inch): each curve's, and places that are in the way
    to_points = 72 / axes.figure.dpi
    for label, curve in curves.items():
        xy = np.stack([curve.mse, curve.distance], axis=-1)
        bars = np.stack([curve.mse_spread, curve.distance_spread], axis=-1)
        bars = bars[:, None, None] * np.linspace(-1, 1, 9)[:, None, None] * np.eye(2)
        bars = (xy[:, None, None] + bars).reshape(-1, 2)
        line, bars = (to_points * axes.transData.transform(places) for places in (xy, bars))
        steps = np.linspace(0, len(line) - 1, 20 * len(line) - 19)
        between = np.stack([np.interp(steps, np.arange(len(line)), x) for x in line.T], axis=-1)
        paths[label] = line
        taken += [*between, *bars]
    low, high = to_points * np.array(axes.get_window_extent().get_points())
    ways = np.array([(x, y) for x in (1, 0, -1) for y in (0, 1, -1) if x or y])
    for label, line in paths.items():
        for i in {0, len(line) - 1} if ends_only else range(len(line)):
            text = f"{curves[label].along[i]:g}"
            half = np.array([2.6 * len(text), 4.0])
            offsets = np.concatenate([ways * (half + gap) for gap in (4.0, 9.0)])
            places = line[i] + offsets
            inside = np.abs(np.array(taken) - places[:, None]) < half + 3.5  # a marker's size
            outside = (places - half < low) | (places + half > high)
            hits = inside.all(axis=-1).sum(axis=1) + 100 * outside.any(axis=1)
            best = np.argmin(hits)
            taken += [places[best] + [x, 0] for x in np.linspace(-half[0], half[0], 9)]
            look = {"color": styles[label]["color"], "fontsize": 8, "path_effects": HALO}
            look |= {"textcoords": "offset points", "ha": "center", "va": "center"}
            point = curves[label].mse[i], curves[label].distance[i]
            axes.annotate(text, point, offsets[best], **look).set_in_layout(False)
