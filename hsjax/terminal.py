"""What a user reads during a run, in lines that fit the terminal."""

import contextlib
import functools
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

import numpy as np

from hsjax.errors import Interrupted, UserError


def tell(text: str = "", *, end: str = "\n") -> None:
    """Print to standard output, at once.

    Letters that it can't show become question marks. If it is closed or None, nothing is shown.

    Raises:
      OSError: standard output is a file on a full disk, or a pipe to a program that has ended.
    """
    # It lacks a file's methods; a signal handler interrupts a print; it is closed.
    with contextlib.suppress(AttributeError, RuntimeError, ValueError):
        try:
            print(text, end=end, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(sys.stdout, "encoding", None) or "ascii"
            print(text.encode(encoding, "replace").decode(encoding), end=end, flush=True)


def is_terminal() -> bool:
    """Whether standard output shows a line that can be written anew."""
    try:
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def columns() -> int:
    """Width of the terminal, or COLUMNS; a file has no bound."""
    return shutil.get_terminal_size((80 if is_terminal() else 100_000, 24)).columns


def fold(text: str, indent: int = 2) -> str:
    """Break a line between words where the terminal ends, and indent what follows."""
    return textwrap.fill(
        text,
        columns(),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(rows: list[list[str]], *, heads: int = 1, gap: str = "  ") -> str:
    """Cells as aligned lines; columns that the terminal has no room for follow below.

    Args:
      rows: of cells, all of the same length.
      heads: how many of the first columns are repeated in each part of a folded table.
      gap: between columns.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[x.rjust(w) for x, w in zip(row, widths, strict=True)] for row in rows]
    lines: list[str] = []
    block = start = [gap.join(row[:heads]) for row in cells]
    for column in zip(*(row[heads:] for row in cells), strict=True):
        if block is not start and len(block[0] + gap + column[0]) > columns():
            lines, block = lines + block, start
        block = [line + gap + cell for line, cell in zip(block, column, strict=True)]
    return "\n".join(lines + block)


class Progress:
    """One line about the present epoch: rewritten in a terminal, every few seconds elsewhere."""

    def __init__(self, epochs: int, steps: int, batch_size: int):
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self._start = time.monotonic()
        self._shown = self._kept = -np.inf
        self._in_place = is_terminal()

    def due(self) -> bool:
        """Whether it's time to look at the numbers, which waits for the device."""
        return time.monotonic() - self._shown > 0.5

    def show(self, step: int, terms: dict[str, float], *, new: int, final: bool = False) -> None:
        """Say where the run stands; where the terminal is narrow, the last terms are left out.

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
        part = "" if inside == self.steps else f" step {inside}/{self.steps}"
        fields = [
            f"epoch {epoch + 1}/{self.epochs}{part}",
            *(f"{name} {value:.4g}" for name, value in terms.items()),
            f"{rate * self.batch_size:.0f} images/s",
            f"{hours}:{left % 60:02d} left",
        ]
        # A full line would continue in the next one, which could not be rewritten.
        room = columns() - 1
        while len(line := "  ".join(fields)) > room and len(fields) > 2:
            del fields[-2]
        if self._in_place:
            tell(f"\r\033[K{line[:room]}", end="\n" if keep else "")
        else:
            tell(line)
        if keep:
            self._kept = now

    def close(self) -> None:
        """End the line that is being rewritten."""
        if self._in_place and self._shown > self._kept:
            tell()


def counted(parts: Iterable[np.ndarray], total: int, what: str) -> Iterator[np.ndarray]:
    """The same parts; in a terminal a line counts their rows, and is gone at the end."""
    done, shown = 0, -np.inf
    for part in parts:
        yield part
        done += len(part)
        if is_terminal() and time.monotonic() - shown > 0.2:
            tell(f"\r\033[K{done} of {total} {what}", end="")
            shown = time.monotonic()
    if shown > 0:
        tell("\r\033[K", end="")


class Phases:
    """What is being done: a line for each phase, with the seconds it took once it is over.

    In a terminal the seconds are counted as they pass. Use it in a `with` statement, which ends the
    line whatever happens.
    """

    def __init__(self):
        self._line = None

    def __call__(self, text: str) -> None:
        """Begin a phase, and end the one before it."""
        self.close()
        self._line = f"  {text} ..."[: columns() - 10]
        self._start, self._over = time.monotonic(), threading.Event()
        self._clock = threading.Thread(target=self._count, daemon=True) if is_terminal() else None
        tell(self._line, end="")
        if self._clock:
            self._clock.start()

    def _count(self) -> None:
        with contextlib.suppress(OSError):  # it is for the main thread to meet
            while not self._over.wait(1.0):
                tell(f"\r{self._line} {time.monotonic() - self._start:.0f} s", end="")

    def close(self, failed: bool = False) -> None:
        """End the last phase; if it failed, the error has its own line."""
        if self._line is None:
            return
        line, self._line = self._line, None
        seconds = "" if failed else f" {time.monotonic() - self._start:.1f} s"
        self._over.set()
        if self._clock:
            self._clock.join()
            seconds = f"\r{line}{seconds}" if seconds else ""
        tell(seconds)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close(failed=kind is not None)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Turn a user's mistake, or Ctrl-C, in a program's main into one line and an exit status."""

    @functools.wraps(main)
    def run():
        try:
            main()
        except UserError as error:
            fail(error, 2)
        except Interrupted as stop:
            tell(str(stop))
            sys.exit(128 + stop.signal)
        except BrokenPipeError:  # the reader of the output has closed it
            sys.stdout = open(os.devnull, "w")  # or the exit would try to write again
            sys.exit(1)
        except KeyboardInterrupt:
            try:
                fail("interrupted: repeat the command", 130)
            finally:
                os._exit(130)  # as in cli.py

    return run


def fail(error: Exception | str, status: int) -> NoReturn:
    """End the program with one line to standard error and this exit status."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)
