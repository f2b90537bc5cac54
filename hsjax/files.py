"""Files that are read whole or refused, written whole or not at all, and by one run at a time."""

import contextlib
import errno
import glob
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from absl import logging
from filelock import FileLock, Timeout, lock_descriptor

from hsjax.errors import UserError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # from file systems without locks


def user_cache() -> Path | None:
    """Where the user keeps what can be made again, or None where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "hsjax") if os.path.isabs(root) else None


def workdir_path(workdir: str | os.PathLike) -> Path:
    """A workdir's absolute path, with ~ expanded.

    Raises:
      UserError: a name that a library would look for elsewhere, or an address such as gs://.
    """
    text = os.fsdecode(workdir)
    if re.match(r"[A-Za-z][\w.+-]+:/", text):
        raise UserError(f"workdir {text} is not on this machine's disks: choose a local --workdir")
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"workdir {text}: no such home folder: choose another --workdir") from error
    try:
        readable = "\0" not in text and os.fsencode(path) == str(path).encode()
    except UnicodeEncodeError:
        readable = False
    if not readable:
        raise UserError(f"workdir {str(path)!a} is not UTF-8 text: choose another --workdir")
    return path


@contextlib.contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """The folder, or a link to it if other libraries would take its path for a pattern."""
    text = str(folder)
    if glob.escape(text) == text and (os.sep == "\\" or "\\" not in text):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="hsjax-") as beside:
        link = Path(beside, "folder")
        link.symlink_to(folder)
        yield link


def read_npz(
    path: str | Path,
    names: Iterable[str] | None = None,
    advice: str = "judge the run again with --mode=evaluate",
) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file holds, or all; UserError if one can't be read whole.

    Members are read to their end, which is where the zip checks their CRC: np.load stops early
    if damage made an array's header claim a smaller array.
    """
    arrays, reading = {}, ""
    try:
        with zipfile.ZipFile(path) as archive:
            if names is None:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
            for reading in names:
                if f"{reading}.npy" in archive.namelist():
                    with archive.open(f"{reading}.npy") as member:
                        arrays[reading] = np.lib.format.read_array(member, allow_pickle=False)
                        if member.read(1):
                            raise ValueError("bytes are left over after the array")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: {advice}") from error
    except Exception as error:  # a damaged file fails in a dozen ways
        what = reading or "the file"
        raise UserError(f"{path}: {what} cannot be read ({reason(error)}): {advice}") from error
    return arrays


def reason(error: BaseException) -> str:
    """The first line of another library's error, short enough for one line of ours."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0].strip() if lines else type(error).__name__)[:200]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside into a UserError that says why `path` can't be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror or reason(error)}): make room or mend that, "
            "and repeat the command: it goes on from the last checkpoint"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a workdir, created if it isn't there, for this process alone until the end.

    A folder that was created here, and is still empty at the end, is removed.

    The system releases the lock if a process is killed. Where files can't be locked, a warning says
    so. On NFS, locks hold between hosts, unless it is mounted with local_lock.

    Raises:
      UserError: the folder can't be written, or another process, which is named, is using it.
    """
    file = folder / ".lock"

    def sign(descriptor):
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError:
            remove(file)
            raise

    lock, created = FileLock(file, blocking=False, on_acquired=sign), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            file.unlink()
        lock.acquire()
    except Timeout as error:
        holder = file.read_text(errors="replace")[:1000] or "another process"
        raise UserError(
            f"workdir {folder} is in use by {holder}: "
            "wait for it, stop it, or choose another --workdir"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(
                f"workdir {folder} can't be written ({error.strerror}): "
                "mend that or choose another --workdir"
            ) from error
        logging.warning(
            "workdir %s can't be locked (%s): start no second run in it", folder, error.strerror
        )
    try:
        yield
    finally:
        remove(file)  # before the release: then it may be another's
        lock.release()
        if created:
            with contextlib.suppress(OSError):  # it holds a run
                folder.rmdir()


def remove_orphans(folder: Path, pattern: str) -> None:
    """Remove the files and folders of a cache that killed processes left half-written."""
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if not _is_being_written(left):
                remove(left)


def _is_being_written(path: Path) -> bool:
    try:
        with open(path, "r+b") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:  # a folder, or a file system without locks: whatever changed within the hour
        changed = max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
        return time.time() - changed < 3600


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link but not what it points to, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def own_folder(path: Path) -> None:
    """Make a folder unless it is there; it takes the place of a link, with a warning."""
    if path.is_symlink():
        logging.warning("%s was a link to %s: it is a folder now", path, os.readlink(path))
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


def sync(path: Path) -> None:
    """Wait until the disk holds a file, or all of a folder."""
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
    _fsync(path)


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder on the disk, in place of what has the new name."""
    os.replace(old, new)
    _fsync(new.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can sync a folder
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` at the end, or after an error leaves no trace."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(OSError):
                lock_descriptor(file.fileno(), blocking=False)  # remove_orphans asks for it
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees all of it or the one before."""
    with _replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, tree: dict) -> None:
    """Write a dictionary as JSON, all of it or nothing."""
    write_text(path, json.dumps(tree, indent=2) + "\n")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write all of the file or nothing, whatever happens midway."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as file:
        try:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        except ValueError as error:
            if isinstance(error.__context__, OSError):  # which zipfile hides
                raise error.__context__ from None
            raise


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` once it is whole.

    Raises:
      UserError: something is there already, or can't be written.
    """
    with _new(path, os.path.lexists(path)), _replacing(path) as file:
        yield file


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at `path` once it is whole; an empty one may be there before.

    Raises:
      UserError: something is there already, or can't be written.
    """
    empty = path.is_dir() and not any(path.iterdir())
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _new(path, os.path.lexists(path) and not empty):
        try:
            temporary.mkdir()
            yield temporary
            os.replace(temporary, path)
        finally:
            remove(temporary)


@contextlib.contextmanager
def _new(path: Path, exists: bool) -> Iterator[None]:
    if exists:
        raise UserError(f"{path} is there already: nothing is overwritten, so choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror or reason(error)}): make room or choose "
            "another --out"
        ) from error


_UNFINISHED, _FINISHED, _REPLACED = ".unfinished", ".finished", ".replaced"


@contextlib.contextmanager
def replaced_together(folder: Path) -> Iterator[Path]:
    """A new folder, whose entries replace those in `folder` at the end, all or none.

    An error or a kill inside leaves `folder` as it was. After a kill while entries are replaced,
    `recover` finishes the job.

    Raises:
      UserError: `folder` can't be written.
    """
    recover(folder)
    new = folder / _UNFINISHED
    with writing(folder):
        new.mkdir()
    try:
        yield new
        with writing(folder):
            sync(new)
            rename(new, folder / _FINISHED)
            recover(folder)
    finally:
        remove(new)


def recover(folder: Path) -> None:
    """Finish or drop what a killed process was writing: all of it is there then, or nothing.

    Raises:
      UserError: `folder` can't be written.
    """
    finished, old = folder / _FINISHED, folder / _REPLACED
    with writing(folder):
        if finished.is_dir() and not finished.is_symlink():
            for entry in sorted(finished.iterdir()):
                there = folder / entry.name
                if os.path.lexists(there) and (there.is_dir() or entry.is_dir()):
                    remove(old)  # a folder can't be replaced in one go, nor replace a file
                    rename(there, old)
                rename(entry, there)
            finished.rmdir()
    for left in (finished, old, folder / _UNFINISHED, *folder.glob(".*.tmp")):
        remove(left)
