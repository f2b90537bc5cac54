"""Files that are read whole or refused, and written whole or not at all."""

import contextlib
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hsjax.config import UserError


def user_cache() -> Path | None:
    """Where the user keeps what can be made again, or None where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "hsjax") if os.path.isabs(root) else None


def read_npz(path: str | Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file holds; UserError if one cannot be read whole.

    Members are read to their end, which is where the zip checks their CRC: np.load stops early
    if damage made an array's header claim a smaller array.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            held = set(archive.namelist())
            for name in (name for name in names if f"{name}.npy" in held):
                try:
                    with archive.open(f"{name}.npy") as member:
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                        if member.read(1):
                            raise ValueError("bytes are left over after the array")
                except Exception as error:  # a damaged file fails in a dozen ways
                    raise UserError(
                        f"{path}: {name} cannot be read ({reason(error)}): "
                        "write it again with np.savez, as a plain array of numbers"
                    ) from error
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: give data.name the path of an .npz") from error
    except Exception as error:
        raise UserError(
            f"{path}: not a whole .npz file ({reason(error)}): write it again with np.savez"
        ) from error
    return arrays


def reason(error: BaseException) -> str:
    """The first line of an error of someone else's, short enough for one line of ours."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0].strip() if lines else type(error).__name__)[:200]


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees all of it or the one before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, tree: dict) -> None:
    """Write a dictionary as JSON, atomically."""
    write_atomically(path, json.dumps(tree, indent=2) + "\n")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes all of the file or none of it, whatever happens midway."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_together(folder: Path) -> Iterator[Path]:
    """A new folder, all of whose entries take the place of those in `folder` at the end, or none.

    An error inside leaves `folder` as it was.
    """
    new, old = folder / ".unfinished", folder / ".replaced"
    for path in (new, old):  # what a kill left
        shutil.rmtree(path, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        old.mkdir()
        for entry in sorted(new.iterdir()):
            there = folder / entry.name
            if there.is_dir():  # which can't be replaced in one go
                os.replace(there, old / entry.name)
            os.replace(entry, there)
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
