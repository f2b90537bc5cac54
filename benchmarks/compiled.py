"""What the objective and a training step cost as compiled, without a run.

    python -m benchmarks.compiled [--tpu=v5e:2x2 | --gpu=TARGET.txtpb]
        [--out=FILE.json] [KIND ...]

Compiles for the device that JAX sees; with --tpu for a TPU that needn't be
there (pip install libtpu), with --gpu for a GPU described by a
GpuTargetConfigProto, of which XLA's repository has one per model (pip install
--no-deps jax-cuda12-plugin jax-cuda12-pjrt of jax's own version). These numbers
are good for comparing two versions of a program; only a run shows how fast it
is. KIND is a method or a setting: if given, only a training step of each is
compiled.
"""

import math
import os
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from benchmarks import overhead
from benchmarks.measure import (
    check_kinds,
    cumulative_statistics,
    masked_statistics,
    numbers,
    parser,
    write,
)
from benchmarks.objective import objective
from configs import cifar_compressed
from hsjax import devices, losses, statistics, training
from hsjax.terminal import command, tell

LEGEND = """\
  kernels     that a program launches, or one turn of a training step's loop
  moved       bytes that they read and write
  temporary   memory besides arguments and results
  kilocycles  as the compiler estimates them, on a TPU alone
  ours, autodiff, masked    forms of the objective: see benchmarks.objective
"""
TAKES = "It takes some minutes on two cores."
# Instructions that launch nothing.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}
BITS = {"pred": 8, "bf16": 16} | {f"{kind}{n}": n for kind in "suf" for n in (8, 16, 32, 64)}


def cost(program: str) -> dict[str, tuple[int, int]]:
    """(kernels, bytes they read and write) of each computation of an HLO text, the entry as ENTRY.

    A kernel is an instruction that does something; a fusion is one, whatever it holds.
    """
    costs, sizes, name = {}, {}, None
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*->.*\{$", line):
            name = "ENTRY" if head[1] else head[2]
            costs[name] = (0, 0)
        elif match := re.match(r"\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z\-]+)\((.*?)\)(?:,|$)", line):
            result, shape, instruction, operands = match.groups()
            sizes[result] = sum(
                math.prod(int(d) for d in dimensions.split(",") if d) * BITS.get(dtype, 0) // 8
                for dtype, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", shape)
            )
            if instruction not in FREE:
                kernels, moved = costs[name]
                read = sum(sizes.get(x, 0) for x in re.findall(r"%([\w.\-]+)", operands))
                costs[name] = kernels + 1, moved + read + sizes[result]
    return costs


def steps(kinds, dtypes):
    """Yields (name, jitted function, its arguments) of a training step of each."""
    for dtype in dtypes:
        for kind in kinds:
            _, program, arguments = overhead.program(kind, 200, dtype, 200, steps=2, scan=True)
            yield f"step, {kind}, {dtype}", program, arguments


def cases():
    """Yields (name, jitted function, its arguments or their shapes)."""
    forms = {
        "ours": statistics.coordinate_moments,
        "autodiff": cumulative_statistics,
        "masked": masked_statistics,
    }
    for batch, n in ((200, 200), (200, 1000), (2000, 10_000)):
        latents = jax.ShapeDtypeStruct((batch, n), jnp.float32)
        for name, form in forms.items():
            if name != "masked" or n <= 1000:
                function = jax.jit(jax.value_and_grad(partial(objective, form), argnums=(1, 2)))
                arguments = (losses.paper_spec(n), latents, latents)
                yield f"objective {batch} x {n}, {name}", function, arguments
    yield from steps(("standard", "spherical"), ("float32", "bfloat16"))


def together(counts, device, batch=200):
    """Yields (name, jitted function, its arguments' shapes) of a step of so many runs at once.

    They are on one device by `jax.vmap`, as in `hsjax.sweep --together`; images are whole on it.
    """
    config = cifar_compressed.get_config()
    config.model.latent_dim, config.train.batch_size = 200, batch
    setup, _ = training.create(config, (32, 32, 3), overhead.COUNT)
    mesh = Mesh(np.array([device]), ("run",))
    programs = training.compile_programs(setup, overhead.COUNT, mesh)
    objective = training.build_objective(config)
    for count in counts:
        shapes = jax.tree.map(
            lambda x, count=count: jax.ShapeDtypeStruct((count, *x.shape), x.dtype),
            (objective, setup.like(objective)),
        )
        images = jax.ShapeDtypeStruct((overhead.COUNT, 32, 32, 3), jnp.uint8)
        order = jax.ShapeDtypeStruct((2, count, batch), jnp.int32)
        yield f"step, {count} runs", programs.epoch, (*shapes, (images, None), order)


def shapes_of_step(dtype: str, batch: int):
    """An epoch's jitted function on the whole of CIFAR10, or more, and its arguments' shapes."""
    config = cifar_compressed.get_config()
    config.model.latent_dim, config.model.dtype, config.train.batch_size = 200, dtype, batch
    count = max(50_000, batch)
    setup, _ = training.create(config, (32, 32, 3), count)
    objective = training.build_objective(config)
    images = jax.ShapeDtypeStruct((count, 32, 32, 3), jnp.uint8)
    order = jax.ShapeDtypeStruct((2, batch), jnp.int32)
    program = training.compile_programs(setup, count).epoch
    return program, (objective, setup.like(objective), (images, None), order)


def largest_batch(dtype: str, limit: float, sharding) -> dict:
    """The largest batch, in hundreds, whose step takes no more than `limit` GB.

    Memory is close to a straight line in the batch: two sizes give a first guess.
    """

    def needed(batch):
        row = measure(*shapes_of_step(dtype, batch), sharding)
        return (row["temporary_bytes"] + row["argument_bytes"]) / 1e9

    small, large = 1000, 4000
    slope = (needed(large) - needed(small)) / (large - small)
    batch = int((limit - needed(small)) / slope + small) // 100 * 100
    while (found := needed(batch)) > limit:
        batch -= max(100, int((found - limit) / slope) // 100 * 100)
    row = {"case": f"largest batch in {limit:g} GB, {dtype}", "batch": batch, "gigabytes": found}
    return row | {"megabytes_at_200": 1e3 * needed(200)}


def measure(function, arguments, sharding=None, *, loop=False) -> dict:
    """One row: a jitted function, or the body of its largest loop, on the device of a sharding."""

    def shape(x):
        return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=sharding)

    compiled = function.lower(*jax.tree.map(shape, arguments)).compile()
    text = compiled.as_text()
    costs = cost(text)
    bodies = [costs[name] for name in re.findall(r"body=%?([\w.\-]+)", text)]
    kernels, moved = max(bodies, default=costs["ENTRY"]) if loop else costs["ENTRY"]
    cycles = re.findall(r'"estimated_cycles":"(\d+)"', text)
    return {
        "kernels": kernels,
        "moved_bytes": moved,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "argument_bytes": compiled.memory_analysis().argument_size_in_bytes,
        "estimated_cycles": sum(map(int, cycles)) if cycles else None,
    }


def target(arguments) -> SingleDeviceSharding | None:
    """The device to compile for, before JAX has started."""
    if not (arguments.tpu or arguments.gpu):
        return None
    jax.config.update("jax_platforms", "cpu")
    if arguments.tpu:
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
        topology = topologies.get_topology_desc(platform="tpu", topology_name=arguments.tpu)
    else:
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        # Autotuning would run candidates on the device.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0"
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology="1x1x1",
            target_config=arguments.gpu.read_text(),
        )
    return SingleDeviceSharding(topology.devices[0])


@command
def main() -> None:
    """Compile, print, write."""
    flags = parser(__doc__, "compiled", TAKES)
    flags.add_argument("kinds", nargs="*", metavar="KIND", help="compile steps of these alone")
    flags.add_argument(
        "--together", type=numbers, metavar="K,...", help="compile a step of K runs in one program"
    )
    flags.add_argument(
        "--fit", type=numbers, metavar="GB,...", help="find the largest batch for so much memory"
    )
    where = flags.add_mutually_exclusive_group()
    where.add_argument("--tpu", metavar="TOPOLOGY", help="compile for these, such as v5e:2x2")
    where.add_argument(
        "--gpu", type=Path, metavar="FILE", help="compile for this GpuTargetConfigProto (text)"
    )
    arguments = flags.parse_args()
    if arguments.gpu and not arguments.gpu.is_file():
        flags.error(f"--gpu={arguments.gpu}: no such file")
    sharding = target(arguments)
    devices.start()
    device = next(iter(sharding.device_set)) if sharding else jax.devices()[0]
    tell(f"compiled for {device.device_kind}\n{LEGEND}{TAKES}\n")
    if arguments.fit:
        rows = []
        for dtype in ("float32", "bfloat16"):
            for limit in arguments.fit:
                rows.append(largest_batch(dtype, limit, sharding))
                tell(f"{rows[-1]['case']:<32}  {rows[-1]['batch']:>7,}")
        write(arguments.out, rows)
        return
    tell(f"{'':<32}  kernels  moved, MB  temporary, MB  kilocycles")
    rows = []
    chosen = steps(check_kinds(arguments.kinds), ("float32",)) if arguments.kinds else cases()
    if arguments.together:
        chosen = together(arguments.together, device)
    for name, function, shapes in chosen:
        row = measure(function, shapes, sharding, loop=name.startswith("step"))
        rows.append({"case": name, "compiled_for": device.device_kind, **row})
        tell(
            f"{name:<32}  {row['kernels']:>7}  {row['moved_bytes'] / 1e6:>9.2f}  "
            f"{row['temporary_bytes'] / 1e6:>13.2f}  "
            f"{(row['estimated_cycles'] or 0) / 1e3 or '':>10}".rstrip()
        )
        write(arguments.out, rows, final=False)
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
