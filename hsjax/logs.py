"""What a run tells while it goes: the progress line, metrics.jsonl and TensorBoard files."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from hsjax.files import write_atomically


class Progress:
    """One line about the present epoch: rewritten in a terminal, every few seconds elsewhere."""

    def __init__(self, epochs: int, steps: int, batch_size: int):
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self._start = time.monotonic()
        self._shown = self._kept = -np.inf
        self._in_place = sys.stdout.isatty()

    def due(self) -> bool:
        """Whether it's time to look at the numbers, which waits for the device."""
        return time.monotonic() - self._shown > 0.5

    def show(self, step: int, terms: dict[str, float], *, new: int, final: bool = False) -> None:
        """Say where the run stands.

        Args:
          step: steps done since the run's very beginning.
          terms: to name in the line.
          new: steps done since this process began.
          final: keep this line.
        """
        now = time.monotonic()
        self._shown = now
        # A line that stays: the first epoch's, the last's, one every five seconds at the end of an
        # epoch, and in a log file one every half minute within.
        keep = final or (step % self.steps == 0 and now - self._kept > 5.0)
        keep |= not self._in_place and now - max(self._kept, self._start) > 30.0
        if not (keep or self._in_place):
            return
        epoch, inside = divmod(step, self.steps)
        if inside == 0:
            epoch, inside = epoch - 1, self.steps
        rate = new / max(now - self._start, 1e-9)
        left = round((self.epochs * self.steps - step) / rate)
        hours = f"{left // 3600}:{left // 60 % 60:02d}" if left >= 3600 else f"{left // 60}"
        values = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        part = "" if inside == self.steps else f" step {inside}/{self.steps}"
        line = (
            f"epoch {epoch + 1}/{self.epochs}{part}  {values}  "
            f"{rate * self.batch_size:.0f} images/s  {hours}:{left % 60:02d} left"
        )
        if self._in_place:
            print(f"\r\033[K{line}", end="\n" if keep else "", flush=True)
        else:
            print(line, flush=True)
        if keep:
            self._kept = now

    def close(self) -> None:
        """Leave the line that is being rewritten."""
        if self._in_place and self._shown > self._kept:
            print(flush=True)


class Phases:
    """What an evaluation is at: a line for each phase, with the seconds it took once it is over.

    Use it in a `with` statement, which ends the line whatever happens.
    """

    def __init__(self):
        self._start = None

    def __call__(self, text: str) -> None:
        """A phase begins, and the one before it is over."""
        self.close()
        self._start = time.monotonic()
        print(f"  {text} ...", end="", flush=True)

    def close(self) -> None:
        """The last phase is over."""
        if self._start is not None:
            print(f" {time.monotonic() - self._start:.1f} s", flush=True)
        self._start = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and self._start is not None:
            print(flush=True)  # the error has its own line
            self._start = None
        self.close()


class Records:
    """metrics.jsonl, a line per epoch, and the same scalars and image grids for TensorBoard."""

    def __init__(self, workdir: Path, epoch: int, step: int):
        """Continue after `epoch`: what an interrupted run wrote beyond it is dropped."""
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_metrics(workdir) if row["epoch"] <= epoch]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._writer.close()

    def epoch(self, row: dict) -> None:
        """Add an epoch; row holds "epoch", "step" and numbers by name."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name in row.keys() - {"epoch", "step"}:
            self._writer.add_scalar(f"train/{name}", row[name], row["step"])

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Add a grid of images [count, height, width, channels] in [0, 1]."""
        self._writer.add_images(name, images, step, dataformats="NHWC")

    def results(self, numbers: dict, step: int) -> None:
        """Add the final numbers."""
        for name, value in numbers.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"test/{name}", value, step)


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl up to one that isn't a whole row of numbers (a killed run)."""
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (RecursionError, ValueError):
            break
        if type(row) is not dict or not {"epoch", "step", "loss"} <= row.keys():
            break
        if any(type(value) not in (int, float) for value in row.values()):
            break
        rows.append(row)
    return rows
