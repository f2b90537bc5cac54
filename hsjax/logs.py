"""What a run logs: metrics.jsonl, and TensorBoard or Weights & Biases."""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import re
import secrets
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from hsjax.errors import UserError
from hsjax.files import own_folder, reason, sync, write_text, writing

SPLITS = ("validation", "test")  # whose terms a row may hold besides those of training


class Records:
    """metrics.jsonl, a line per epoch, and the same scalars and image grids by a writer."""

    def __init__(self, workdir: Path, epoch: int, step: int, writer: str = "tensorboard"):
        """Continue after `epoch`: what an interrupted run wrote beyond it is dropped.

        A warning names the epochs that are lost to damage; a copy of a damaged file is kept.
        `writer` is a name in `WRITERS`.

        Raises:
          UserError: metrics.jsonl can't be written; `epoch` and `sync` likewise.
        """
        self._path = workdir / "metrics.jsonl"
        with writing(self._path):
            rows, damaged = _rows(self._path)
            kept = [row for row in rows if row["epoch"] <= epoch]
            if lost := sorted(set(range(1, epoch + 1)) - {row["epoch"] for row in kept}):
                _warn(self._path, lost, damaged)
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        # A kill may have come before all of this step was written for TensorBoard.
        last = [row for row in kept if row["step"] == step > 0]
        self._events = WRITERS[writer](workdir, step if last else step + 1)
        for row in last:
            self._scalars(row)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._events.close()

    def epoch(self, row: dict) -> None:
        """Add an epoch; row holds "epoch", "step" and numbers by name."""
        with writing(self._path), self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._scalars(row)

    def _scalars(self, row: dict) -> None:
        scalars = {_tag(name): row[name] for name in sorted(row.keys() - {"epoch", "step"})}
        self._events.scalars(row["step"], scalars)

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Add a grid of images [count, height, width, channels] in [0, 1]."""
        self._events.images(step, name, images)

    def results(self, numbers: dict, step: int) -> None:
        """Add the final numbers, those of every sampler too."""
        scalars = {f"evaluation/{k}": x for k, x in numbers.items() if isinstance(x, int | float)}
        for row in numbers.get("generation", ()):
            seed = f" seed {row['seed']}" if "seed" in row else ""
            for sampler, values in row["samplers"].items():
                name = f"samples/{sampler}/{row['distance']}{seed}"
                scalars |= {f"{name} {key}": value for key, value in values.items()}
        self._events.scalars(step, scalars)

    def sync(self) -> None:
        """Wait until all is on the disk, before a checkpoint for which no line may be missing."""
        with writing(self._path):
            sync(self._path)
        self._events.sync()


def _tag(name: str) -> str:
    """The name of a row's number in a writer: train/mse, or validation/mse of validation_mse."""
    split, _, term = name.partition("_")
    return f"{split}/{term}" if split in SPLITS else f"train/{name}"


class _Nothing:
    """A writer that writes nothing."""

    def __init__(self, workdir: Path, first_step: int):
        """Continue in a workdir from `first_step` on."""

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Add numbers by name."""

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Add images [count, height, width, channels] in [0, 1]."""

    def sync(self) -> None:
        """Wait until the disk holds it all."""

    def close(self) -> None:
        """End: nothing more will be added."""


class _WeightsAndBiases(_Nothing):
    """A run of Weights & Biases: the same one after a restart, by its id in the workdir.

    Its project is $WANDB_PROJECT, else hsjax. WANDB_MODE=offline keeps all of it in wandb/.
    """

    def __init__(self, workdir: Path, first_step: int):
        import wandb

        file = workdir / "wandb_run.txt"
        text = file.read_text(errors="replace").strip() if file.is_file() else ""
        run_id = text if re.fullmatch("[0-9a-z]{8}", text) else secrets.token_hex(4)
        with writing(workdir):
            own_folder(workdir / "wandb")
            write_text(file, f"{run_id}\n")
        self._wandb: Any = wandb
        try:
            self._run: Any = wandb.init(
                dir=str(workdir),
                project=os.environ.get("WANDB_PROJECT", "hsjax"),
                name=workdir.name,
                id=run_id,
                resume="allow",
                config=json.loads((workdir / "config.json").read_text()),
                # The progress line is rewritten; what wandb says would stand between.
                settings=wandb.Settings(console="off", silent=True),
            )
            # By its own steps, it would drop those that are repeated after a kill.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            raise UserError(
                f"log.writer=wandb can't begin ({reason(error)}): `wandb login`, "
                "set WANDB_MODE=offline, or choose log.writer=tensorboard"
            ) from error

    def scalars(self, step, scalars):
        self._or_without(lambda: self._run.log({"step": step, **scalars}))

    def images(self, step, name, images):
        pixels = [np.rint(255.0 * image).astype(np.uint8) for image in images]
        pictures = [self._wandb.Image(image) for image in pixels]
        self._or_without(lambda: self._run.log({"step": step, name: pictures}))

    def close(self):
        self._or_without(lambda: self._run.finish())

    def _or_without(self, act: Callable[[], Any]) -> None:
        if self._run:
            try:
                act()
            except Exception as error:
                logging.warning("wandb fails (%s): going on without it", reason(error))
                self._run = None


class _TensorBoard(_Nothing):
    """A file for TensorBoard; if it can't be written, a warning says so and the run goes on.

    It is written directly: tensorboardX's SummaryWriter, as of 2.6.5, leaves that to a thread, and
    waits for this thread forever once it has failed.
    """

    def __init__(self, workdir: Path, first_step: int):
        """Make TensorBoard hide what older files have from `first_step` on."""
        folder = self._folder = workdir / "tensorboard"
        self._file = None
        with self._or_without():
            # A user's link to where event files are kept may stay; nothing there is changed.
            if not (folder.is_dir() and all("tfevents" in name for name in os.listdir(folder))):
                own_folder(folder)
            # TensorBoard reads files by name, so this one is the last whatever the clock says.
            stamps = [re.search(r"tfevents\.(\d{10})\.(\d{6})\.", n) for n in os.listdir(folder)]
            latest = max((int(stamp[1] + stamp[2]) for stamp in stamps if stamp), default=0)
            stamp = max(int(time.time() * 1e6), latest + 1)
            name = f"events.out.tfevents.{stamp // 10**6}.{stamp % 10**6:06d}"
            self._file = RecordWriter(str(folder / f"{name}.{socket.gethostname()}"))
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step, scalars):
        for name, value in scalars.items():  # summary.scalar would change a name's brackets
            point = summary.Summary.Value(tag=name, simple_value=value)
            self._write(step=step, summary=summary.Summary(value=[point]))

    def images(self, step, name, images):
        self._write(step=step, summary=summary.image(name, images, dataformats="NHWC"))

    def _write(self, **content) -> None:
        if self._file:
            with self._or_without():
                event = Event(wall_time=time.time(), **content)
                self._file.write(event.SerializeToString())

    def sync(self) -> None:
        if self._file:
            with self._or_without():
                self._file.flush()

    def close(self) -> None:
        if self._file:
            with self._or_without():
                self._file.close()

    @contextlib.contextmanager
    def _or_without(self):
        try:
            yield
        except OSError as error:
            logging.warning(
                "%s can't be written (%s): going on without TensorBoard",
                self._folder,
                error.strerror,
            )
            if self._file:
                with contextlib.suppress(OSError):
                    self._file.close()
            self._file = None


WRITERS: dict[str, Callable[[Path, int], _Nothing]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "none": _Nothing,
}


def check(writer: str) -> None:
    """Find out before a long training whether a writer can be used.

    Raises:
      UserError: wandb is not installed.
    """
    if writer == "wandb" and not importlib.util.find_spec("wandb"):
        raise UserError(
            "log.writer=wandb: wandb is not installed: in a clone, pip install '.[wandb]'"
        )


def best_step(workdir: Path, term: str, among: Iterable[int]) -> int | None:
    """The one of these steps with the least validation "mse" or "loss" in metrics.jsonl, if any.

    All losses take the newest β: their own, while it still grows, would favour early epochs.
    """
    rows = [row for row in read_metrics(workdir) if "validation_mse" in row]

    def value(row):
        if term == "mse":
            return row["validation_mse"]
        return row["validation_mse"] + rows[-1]["beta"] * row["validation_regulariser"]

    finite = [row for row in rows if row["step"] in among and math.isfinite(value(row))]
    return min(finite, key=value)["step"] if finite else None


def read_metrics(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl; a line that can't be read, such as one cut off, is left out."""
    return _rows(Path(workdir) / "metrics.jsonl")[0]


def _rows(path: Path) -> tuple[list[dict], list[int]]:
    """The rows of metrics.jsonl, and the numbers of damaged lines."""
    rows, damaged = {}, []
    content = path.read_bytes() if path.is_file() else b""  # a pipe might never end
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = json.loads(line.decode())
            if "loss" not in row or not all(type(value) in (int, float) for value in row.values()):
                raise ValueError
            rows[number] = row, row["step"] / row["epoch"]
        except Exception:  # a damaged line fails in a dozen ways
            damaged.append(number)
    # All epochs have the same number of steps; if a row differs, its step or epoch is damaged.
    usual = statistics.mode(steps for _, steps in rows.values()) if rows else None
    damaged += [number for number, (_, steps) in rows.items() if steps != usual]
    return [row for row, steps in rows.values() if steps == usual], sorted(damaged)


def _warn(path: Path, lost: list[int], damaged: list[int]) -> None:
    """Say which epochs are missing; keep a copy of a file with damaged lines."""

    def shown(numbers):
        return ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)

    if not damaged:
        logging.warning("%s lacks epoch %s: going on without", path, shown(lost))
        return
    names = (f"{path.name}-damaged-{i}" for i in itertools.count(1))
    copies = (path.with_name(name) for name in names)
    copy = next(copy for copy in copies if not os.path.lexists(copy))
    shutil.copyfile(path, copy)
    logging.warning(
        "%s lacks epoch %s (line %s is damaged): going on without; the file as it was is now %s",
        path,
        shown(lost),
        shown(damaged),
        copy.name,
    )
