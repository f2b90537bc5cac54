"""hsjax: train, judge and use autoencoders and their latent spaces.

    hsjax train --config=digits_compressed
    hsjax sample --workdir=runs/digits_compressed --count=1000 --out=samples/

`hsjax COMMAND --help` explains the flags of a command, `hsjax fields` every
field of a config.
"""

import errno
import importlib
import os
import runpy
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsjax.errors import UserError
from hsjax.terminal import columns, fail, tell

try:
    import jax
    from absl import app, flags, logging
    from ml_collections import ConfigDict, config_flags
except ModuleNotFoundError as missing:
    fail(f"{missing.name} is not installed: in a clone, pip install '.[train]'", 2)

CONFIGS = Path(__file__).with_name("configs")
DEFAULT = str(CONFIGS / "default.py")
COMMANDS = {
    "train": "train a model, or continue, then judge it",
    "evaluate": "judge a trained model again",
    "sample": "write new images of a trained model",
    "reconstruct": "write what a trained model makes of images",
    "interpolate": "write images on the way between two",
    "export": "write a trained model as a folder that others can open",
    "sweep": "train and compare models of many strengths and seeds",
    "leaderboard": "write pages and figures of finished sweeps",
    "fields": "list every field of a config, or of a method",
}
FLAGS = flags.FLAGS

# No default: it would be read here, before a mistake in it could be reported as one line.
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Python file of the run's config, or the name of one in configs/; default if not given. Those "
    "named after a data set take a method, and a number of epochs for a shorter run: mnist:rae:30",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for all that the run writes; if not given, runs/<config name> or, for FILE:METHOD, "
    "runs/<config name>_<method>",
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate"],
    "train: train, or continue, then evaluate. evaluate: judge the trained model again",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Train on several hosts, with this command on each of them. The cluster (a TPU slice, SLURM or "
    "Open MPI) tells the processes about each other",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Train on several hosts without such a cluster: HOST:PORT of process 0. Give --processes and "
    "--process too",
)
PROCESSES = flags.DEFINE_integer(
    "processes", None, "With --coordinator: the number of processes that train together"
)
PROCESS = flags.DEFINE_integer(
    "process", None, "With --coordinator: the number of this process, counted from 0"
)


def main() -> None:
    """The command `hsjax`: a command's name, then its flags."""
    _open_streams()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        tell(__doc__)
        tell("\n".join(f"  {command:{width}}  {text}" for command, text in COMMANDS.items()))
    elif name in ("train", "evaluate"):
        run_experiment([f"hsjax {name}", f"--mode={name}", *arguments])
    elif name in ("sweep", "leaderboard"):
        sys.argv = [f"hsjax {name}", *arguments]
        importlib.import_module(f"hsjax.{name}").main()
    elif name in COMMANDS:
        sys.argv = [f"hsjax {name}", *arguments]
        getattr(importlib.import_module("hsjax.commands"), name)()
    else:
        fail(f"no such command: {name}: choose one of {', '.join(COMMANDS)}", 2)


def run_experiment(argv: list[str]) -> None:
    """Train, or judge, by flags: what main.py does.

    Args:
      argv: the program's name, then flags.
    """
    _open_streams()
    sys.argv = argv  # where absl and ml_collections look for names and fields
    again = argv[0] == "hsjax evaluate"
    for flag in FLAGS.flags_by_module_dict()[__name__]:  # for --help
        if not again or flag.name in ("config", "workdir"):
            FLAGS.register_key_flag_for_module(argv[0], flag)
    sys.modules["__main__"].__doc__ = _USAGE_AGAIN if again else _USAGE
    app.run(_main, argv=argv, flags_parser=parse)


_USAGE_AGAIN = """Judge a trained model again, as training does at its end.

    hsjax evaluate --workdir=runs/digits_rae
    hsjax evaluate --workdir=runs/digits_rae --config.evaluate.batch_norm=batch
    hsjax evaluate --workdir=runs/digits_rae --config.sample.sampler=flow

The config is the workdir's. Only the fields of sample and evaluate may change
(`hsjax fields sample` and `hsjax fields evaluate` list them), and those that
say where the data is: data.name, data.dir, data.device_share. New numbers and
figures replace the old.
"""
_USAGE = """Train a VAE and judge it, or judge a trained one again.

    hsjax train --config=cifar_compressed --config.train.epochs=50
    hsjax evaluate --workdir=runs/cifar_compressed

In a clone, python main.py is the same. `hsjax fields` lists every field of a
config, with its default and its meaning. Change a field with
--config.FIELD=VALUE, such as --config.model.latent_dim=64. Repeat a command to
continue a run. An evaluation takes only the fields of sample and evaluate, and
those that say where the data is: data.name, data.dir, data.device_share.
"""


def parse(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake is one line and exit status 2."""
    try:
        files = flags.FlagValues()
        flags.DEFINE_multi_string("config", [], "", flag_values=files)
        rest = files(argv, known_only=True)
        given = files["config"].value or []
        if len(given) > 1:
            raise flags.Error(f"--config={given[0]} and --config={given[1]}: give one of them")
        path = config_path(given[0]) if given else DEFAULT
        check_file(path)
        rest = FLAGS([argv[0], f"--config={path}", *rest[1:]])
        if rest[1:]:
            raise flags.Error(f"unexpected argument {rest[1]!r}: fields are --config.FIELD=VALUE")
        return rest
    except (AttributeError, LookupError) as error:
        # The text is that of a KeyError, quoted and escaped.
        text = str(error).replace("\\n", " ").translate(str.maketrans("", "", "'\\"))
        fail(f"no such config field: {text}", 2)
    except (flags.Error, RecursionError, TypeError, ValueError) as error:
        fail(error, 2)


def config_path(given: str) -> str:
    """FILE or FILE:SETTING, where the name of a config in configs/ is replaced by its path."""
    path, colon, setting = os.path.expanduser(given).partition(":")  # shells leave ~ after = alone
    ours = CONFIGS / f"{path}.py"
    if not os.path.isfile(path) and path.isidentifier() and ours.is_file():
        path = str(ours)
    return path + colon + setting


def check_file(given: str) -> Callable[..., ConfigDict]:
    """The get_config of FILE or FILE:X; a UserError unless get_config() or get_config(X) works."""
    path, colon, argument = given.partition(":")  # as ml_collections does
    if not Path(path).is_file():
        names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.py")))
        raise UserError(f"--config={given}: no such file; those with names are {names}")
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = get_config(*([argument] if colon else [])) if get_config else None
    except UserError as error:
        raise UserError(f"--config={given}: {error}") from error
    except Exception as error:  # a config is a program, which may raise any
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f"line {lines[-1]}" if lines else "it"
        raise UserError(
            f"--config={given}: {where} ends with {type(error).__name__}: {error}"
        ) from error
    if get_config is None or not isinstance(config, ConfigDict):
        raise UserError(f"--config={given}: it needs a get_config() that returns a ConfigDict")
    return get_config


def _main(_) -> None:
    """Run the mode; a user's mistake is one line and exit status 2."""
    logging.set_verbosity(logging.WARNING)
    try:
        _run()
    except OSError as error:
        if error.filename or error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EIO,
            errno.EPIPE,
        ):
            raise
        sys.stdout = open(os.devnull, "w")  # or the exit would try to write again
        fail(f"the output can't be written ({error.strerror}): repeat the command to continue", 2)
    except KeyboardInterrupt:  # outside of training: there is nothing to save
        try:
            fail("interrupted: repeat the command to continue", 130)
        finally:
            os._exit(130)  # XLA's threads are still computing, and leaving in order can crash them


def _run() -> None:
    try:
        from hsjax import devices, experiment
    except ModuleNotFoundError as missing:
        fail(f"{missing.name} is not installed: in a clone, pip install '.[train]'", 2)
    chosen: Any = FLAGS["config"]
    path, *setting = chosen.config_filename.split(":")
    workdir = WORKDIR.value or str(Path("runs") / "_".join((Path(path).stem, *setting)))
    processes = COORDINATOR.value, PROCESSES.value, PROCESS.value
    several = DISTRIBUTED.value or processes != (None, None, None)
    try:
        if several:
            if MODE.value == "evaluate":
                raise UserError("--mode=evaluate takes one process: leave --distributed out")
            devices.connect(*processes)
        start()
        if MODE.value == "evaluate":
            experiment.evaluate(workdir, chosen.override_values)
        else:
            experiment.train_and_evaluate(CONFIG.value, workdir)
        if MODE.value == "train" and not several:
            program = f"python {sys.argv[0]} --mode=evaluate"
            if sys.argv[0] == "hsjax train":
                program = "hsjax evaluate"
            given = shlex.quote(f"--workdir={workdir}")
            for hint, line in (
                ("new images:", f"hsjax sample {given} --out=samples.png"),
                (
                    "to judge it again, with other fields of sample and evaluate:",
                    f"{program} {given}",
                ),
            ):
                tell(hint + (" " if len(hint) + len(line) < columns() else "\n  ") + line)
    except UserError as error:
        fail(error, 2)
    except experiment.Diverged as error:
        fail(error, 1)
    except experiment.Interrupted as stop:
        tell(str(stop))
        sys.exit(128 + stop.signal)


def start(runs: int = 1) -> None:
    """Let JAX find its devices and keep what it compiles.

    Args:
      runs: how many are trained together: see `devices.start`.

    Raises:
      UserError: it finds none.
    """
    from hsjax import devices
    from hsjax.files import user_cache

    # A second start skips most of the compilation.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := user_cache()):
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    devices.start(runs)


def _open_streams() -> None:
    """Open closed standard streams on the null device: else a file of the run gets their number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
