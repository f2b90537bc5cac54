"""Pictures of a run, as PNG."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """[count, H, W, C] -> one image of rows of `columns`, a white pixel apart; grey becomes RGB."""
    images = np.clip(np.asarray(images, np.float32), 0.0, 1.0)
    images = np.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[3] == 1 else images
    images = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    rows = [np.concatenate(row, axis=1) for row in rows if len(row) == columns]
    return np.concatenate(rows, axis=0)[:-1, :-1]


def summary(path: Path, panels: dict[str, np.ndarray], footer: str, columns: int = 8) -> None:
    """Panels of images side by side, {title: [count, H, W, C] in [0, 1]}, written as a PNG."""
    figure = Figure(figsize=(3.6 * len(panels), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.1)
    for axes, (title, images) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        axes.imshow(tile(images, columns), interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.axis("off")
    figure.supxlabel(footer, fontsize=8, color="0.35")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
