"""The devices of a run, on one host or several: they share each batch along one axis, `data`.

All other arrays are on every device. With one device, nothing here adds an operation to a program.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hsjax.errors import UserError
from hsjax.files import reason

_ALL_DAY = 24 * 3600 * 1000  # ms


def _along(spec: PartitionSpec, devices: Sequence[jax.Device]) -> NamedSharding:
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, spec)


def replicated() -> NamedSharding | None:
    """The sharding, for jit, of arrays that every device holds whole."""
    return _along(PartitionSpec(), jax.devices()) if jax.device_count() > 1 else None


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Arrays that all processes hold alike -> the same on each of `devices`, all if None."""
    if jax.device_count() == 1:
        return tree
    sharding = _along(PartitionSpec(), devices or jax.devices())

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def of_runs(count: int) -> Mesh:
    """As many devices as can share `count` runs evenly, along an axis `run`."""
    shared = max(d for d in range(1, jax.local_device_count() + 1) if count % d == 0)
    chosen = jax.local_devices()[:shared]
    return jax.make_mesh((shared,), ("run",), (AxisType.Auto,), devices=chosen)


class Alone:
    """How the arrays of one run are placed on the devices, all of which work on it."""

    def join(self, trees: Sequence[Any]) -> Any:
        """The arrays of the one run, on every device."""
        return replicate(trees[0])

    def part(self, tree: Any) -> list[Any]:
        """What `join` was given."""
        return [tree]

    def replicate(self, tree: Any) -> Any:
        """What all need whole."""
        return replicate(tree)


class Joined:
    """How the arrays of several runs are placed on the devices that share the runs."""

    def __init__(self, count: int, mesh: Mesh):
        self._count, self._mesh = count, mesh

    def join(self, trees: Sequence[Any]) -> Any:
        """Arrays [runs, ...] of the runs' own."""
        of_run = NamedSharding(self._mesh, PartitionSpec("run"))
        return jax.tree.map(lambda *x: jax.device_put(np.stack(x), of_run), *trees)

    def part(self, tree: Any) -> list[Any]:
        """The arrays of each run, on the host."""
        tree = jax.device_get(tree)
        return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(self._count)]

    def replicate(self, tree: Any) -> Any:
        """What all need whole."""
        return jax.device_put(jax.device_get(tree), NamedSharding(self._mesh, PartitionSpec()))


def batch_sharding() -> NamedSharding | None:
    """The sharding, for jit, of an array whose rows the devices share."""
    return _along(PartitionSpec("data"), jax.devices()) if jax.device_count() > 1 else None


def share(shape: tuple[int, ...], read: Callable[[slice], np.ndarray]) -> Array:
    """An array [batch, ...] of this shape whose rows the devices share evenly.

    `read` gives a slice of the rows on the host; each process asks for those of its devices.
    """
    if (sharding := batch_sharding()) is None:
        return jax.device_put(read(slice(None)))
    return jax.make_array_from_callback(shape, sharding, lambda index: read(index[0]))  # type: ignore[index]


def memory() -> int:
    """Bytes of memory of a device of this process; of the host for a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    of_host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit") or min(of_host, *_cgroup_limits(Path("/")))


def _cgroup_limits(root: Path) -> list[int]:
    """Bytes that containers and batch systems allow this process on Linux; none elsewhere."""
    limits = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top = root / "sys/fs/cgroup" / controllers
            folder = top / group.lstrip("/")
            for within in (folder, *folder.parents):  # a container may see itself as the top
                for name in ("memory.max", "memory.limit_in_bytes"):
                    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                        limits.append(int((within / name).read_text()))
    return limits


_APART = ContextVar("_APART", default=False)  # whether a device has batches to itself


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Programs traced inside are for one device, which shares its batch with no other."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def that_share() -> int:
    """How many devices share a batch."""
    return 1 if _APART.get() else jax.device_count()


def each_its_share(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Within jit: apply a function of a batch and of a whole array to each device's rows."""
    if that_share() == 1:
        return function
    rows, whole = PartitionSpec("data"), PartitionSpec()
    mesh = _along(whole, jax.devices()).mesh
    return jax.shard_map(function, mesh=mesh, in_specs=(rows, whole), out_specs=rows)


def split(batch: Array, devices: Sequence[jax.Device] | None = None) -> Array:
    """Within jit: each of `devices` (all if None) computes its share of the rows [batch, ...].

    Sums and means over the rows are still those of the whole batch. If the rows can't be shared
    evenly, every device computes all of them.
    """
    devices = devices or jax.devices()
    if len(batch) % len(devices) or len(devices) == 1 or _APART.get():
        return batch
    return lax.with_sharding_constraint(batch, _along(PartitionSpec("data"), devices))


def cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start(runs: int = 1) -> None:
    """Let JAX find its devices.

    Args:
      runs: the most that are trained together. A CPU then counts as that many devices, but no more
        than it has cores, unless their number is set already, by JAX_NUM_CPU_DEVICES for example.

    Raises:
      UserError: there are none of the kind that JAX_PLATFORMS asks for, or they don't answer.
    """
    try:
        if runs > 1 and jax.config.jax_num_cpu_devices == -1:  # type: ignore[attr-defined]
            jax.config.update("jax_num_cpu_devices", min(runs, cores()))
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        # An assertion has no text: JAX knows the kind, and nothing that drives it is installed.
        why = reason(error).partition(" (set JAX")[0] if str(error) else "no plugin is installed"
        raise UserError(
            f"JAX can't start on JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} ({why}): "
            "install '.[cuda]' or '.[tpu]', or unset JAX_PLATFORMS to run on what is there"
        ) from error


def connect(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the other processes of a run, before anything else is asked of JAX.

    From then on, only the first process prints to stdout.

    Args:
      coordinator: HOST:PORT of the first process; if None, the cluster tells all three.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      UserError: arguments that don't go together, no cluster found, or no answer.
    """
    given = (coordinator, processes, process)
    if None in given and given != (None, None, None):
        raise UserError("--coordinator, --processes and --process go together: give all three")
    if coordinator is not None and processes is not None and process is not None:
        port = re.fullmatch(r"\S+:([0-9]{1,5})", coordinator)
        if not port or not 0 < int(port[1]) < 2**16:
            raise UserError(f"--coordinator={coordinator}: write it as HOST:PORT")
        if not 0 <= process < processes < 2**31:
            raise UserError(
                f"--process={process} is none of --processes={processes}: they count from 0"
            )
    try:
        jax.distributed.initialize(*given, shutdown_timeout_seconds=60)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of the run can't be joined ({reason(error)}): check --coordinator="
            "HOST:PORT --processes=N --process=I, which a cluster unknown to JAX needs"
        ) from error
    sys.excepthook = _end_at_once
    start()
    if not is_first():
        sys.stdout = open(os.devnull, "w")


def _end_at_once(kind, error, trace) -> None:
    """Exit at once: a normal exit would wait for the other processes, and they for this one."""
    # On the CPU, a lost connection may also be a ValueError.
    if issubclass(kind, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
        text = str(error).replace("Error dispatching computation: ", "")[:200]
        print(
            f"error: this process or another one of the run failed ({' '.join(text.split())}): "
            "start all of them again to continue",
            file=sys.stderr,
        )
    else:
        sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(1)


def is_first() -> bool:
    """Whether this process is the one that writes, prints and evaluates."""
    return jax.process_index() == 0


def allgather(value: int) -> list[int]:
    """The values of all processes, in every process; each must be below 2³²."""
    return multihost_utils.process_allgather(np.uint32(value)).tolist()


def broadcast(tree: Any) -> Any:
    """The first process's arrays, in every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """If the block fails in some process, raise a UserError in those where it succeeded."""
    if not jax.distributed.is_initialized():
        yield
        return
    try:
        yield
    except Exception:
        allgather(False)
        raise
    if not all(allgather(True)):
        raise UserError("another process of the run could not go on: its own line says why")


@contextlib.contextmanager
def first_alone() -> Iterator[bool]:
    """Yield whether this is the first process; the others wait for it at the end of the block."""
    try:
        yield is_first()
    finally:
        if jax.process_count() > 1:
            from orbax.checkpoint import multihost  # takes a second to import

            # Not a collective of the devices: those give up sooner.
            multihost.get_barrier_sync_fn()(key="first_alone", timeout_ms=_ALL_DAY)
