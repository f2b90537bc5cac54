"""Finds the operation that made the first non-finite number of a run."""

import traceback
from collections.abc import Callable
from pathlib import Path

import flax
import jax
import jax.numpy as jnp

from hsjax import training


def first_not_finite(
    programs: training.Programs,
    objective: training.Objective,
    state: training.TrainState,
    examples: training.Examples,
) -> str:
    """Which operation makes the first non-finite number of an epoch, and where.

    Runs the epoch again, and its first step that ends with such a number operation by operation.

    Args:
      programs: of this run, not compiled ahead of time.
      objective: of this run.
      state: before the epoch, or a part of it; kept.
      examples: as in `training.train_epoch`.

    Returns:
      Such as "step 3: invalid value (inf) encountered in exp at hsjax/models.py:24".
    """
    found: list[str] = []

    def watched(program):
        def step(objective, before, *batch):
            after = program(objective, jax.tree.map(jnp.copy, before), *batch)
            if not all(jnp.isfinite(x).all() for x in jax.tree.leaves(after)):
                inside = int(before.step) % len(before.history["loss"]) + 1
                culprit = _culprit(program, objective, before, *batch)
                found.append(f"step {inside}: {culprit}")
            return after

        return step

    programs = programs._replace(step=watched(programs.step), batch=watched(programs.batch))
    training.train_epoch(
        programs, objective, state, examples, scan=False, after_step=lambda _: not found
    )
    return found[0] if found else "none in steps that are run one by one"


def _culprit(function: Callable, *arguments) -> str:
    """What makes the first infinity or NaN in a jitted function, and the innermost lines of it."""
    try:
        with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
            function(*arguments)
    except FloatingPointError as error:
        lines = []
        for frame in traceback.extract_tb(error.__traceback__):
            for package in (Path(module).parent for module in (__file__, flax.__file__)):
                if Path(frame.filename).is_relative_to(package):
                    file = Path(frame.filename).relative_to(package.parent).as_posix()
                    lines.append(f"{file}:{frame.lineno}")
        ours = [line for line in lines if line.startswith("hsjax/")][-1]
        called = f", called from {ours}" if lines[-1] != ours else ""
        return f"{error} at {lines[-1]}{called}"
    return "none of its operations by itself"
