"""Train a VAE and judge it, or judge a trained one again.

    python main.py --config=configs/cifar_compressed.py --config.train.epochs=50

configs/default.py lists every field of a config, with its default and its
meaning. Change a field with --config.FIELD=VALUE, such as
--config.model.latent_dim=64. Repeat a command to continue a run.
"""

import errno
import os
import runpy
import shlex
import sys
import traceback
from pathlib import Path


def _fail(error: Exception | str, status: int) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)


try:
    import jax
    from absl import app, flags, logging
    from ml_collections import ConfigDict, config_flags
except ModuleNotFoundError as missing:
    _fail(f"{missing.name} is not installed: pip install -e '.[train]'", 2)
except ValueError as error:
    _fail(f"JAX can't start ({error}): mend that environment variable", 2)

FLAGS = flags.FLAGS
DEFAULT = str(Path(__file__).with_name("configs") / "default.py")
# Without a default, which would be read here, before mistakes in it could become a line.
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Python file of the run's config; configs/default.py if not given. The other files in configs/ "
    "are experiments. Those named after a data set take a method, and a number of epochs for a "
    "shorter run: configs/mnist.py:rae:30",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for all that the run writes; if not given, runs/<config name> or, of FILE:METHOD, "
    "runs/<config name>_<method>",
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate"],
    "train: train, or continue, then evaluate. evaluate: judge the newest checkpoint again",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Train on several hosts, with this command on each of them. The cluster tells the processes "
    "about each other: a TPU slice, SLURM or Open MPI",
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


def parse(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake is one line and exit status 2."""
    try:
        files = flags.FlagValues()
        flags.DEFINE_multi_string("config", [], "", flag_values=files)
        files(argv, known_only=True)
        given = files["config"].value
        if len(given) > 1:
            raise flags.Error(f"--config={given[0]} and --config={given[1]}: give one of them")
        path = os.path.expanduser(given[0]) if given else DEFAULT
        if given:  # a shell leaves the ~ after = alone
            argv = [arg.replace(f"config={given[0]}", f"config={path}") for arg in argv]
        _check_file(path)
        rest = FLAGS(argv if given else [argv[0], f"--config={path}", *argv[1:]])
        if rest[1:]:
            raise flags.Error(f"unexpected argument {rest[1]!r}: fields are --config.FIELD=VALUE")
        return rest
    except (AttributeError, LookupError) as error:
        # The text is that of a KeyError, quoted and escaped.
        text = str(error).replace("\\n", " ").translate(str.maketrans("", "", "'\\"))
        _fail(f"no such config field: {text}", 2)
    except (flags.Error, RecursionError, TypeError, ValueError) as error:
        _fail(error, 2)


def _check_file(given: str) -> None:
    """Raise a flags.Error unless get_config() of FILE, or get_config(X) of FILE:X, is a config."""
    path, colon, argument = given.partition(":")  # as ml_collections does
    if not Path(path).is_file():
        raise flags.Error(f"--config={given}: no such file")
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = get_config(*([argument] if colon else [])) if get_config else None
    except Exception as error:  # it is a program
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f"line {lines[-1]}" if lines else "it"
        raise flags.Error(
            f"--config={given}: {where} ends with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise flags.Error(f"--config={given}: it needs a get_config() that returns a ConfigDict")


def main(_) -> None:
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
        sys.stdout = open(os.devnull, "w")  # or leaving would try it again
        _fail(f"the output can't be written ({error.strerror}): repeat the command to continue", 2)
    except KeyboardInterrupt:  # outside of training: there is nothing to save
        try:
            _fail("interrupted: repeat the command to continue", 130)
        finally:
            os._exit(130)  # XLA's threads are still computing, and leaving in order can crash them


def _run() -> None:
    try:
        from hsjax import devices, experiment
    except ModuleNotFoundError as missing:
        _fail(f"{missing.name} is not installed: pip install -e '.[train]'", 2)
    from hsjax.errors import UserError
    from hsjax.files import user_cache
    from hsjax.terminal import columns, tell

    # A second start skips most of the compilation.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := user_cache()):
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))

    path, *setting = FLAGS["config"].config_filename.split(":")
    workdir = WORKDIR.value or str(Path("runs") / "_".join((Path(path).stem, *setting)))
    processes = COORDINATOR.value, PROCESSES.value, PROCESS.value
    several = DISTRIBUTED.value or processes != (None, None, None)
    try:
        if several:
            if MODE.value == "evaluate":
                raise UserError("--mode=evaluate takes one process: leave --distributed out")
            devices.connect(*processes)
        devices.start()
        if MODE.value == "evaluate":
            experiment.evaluate(CONFIG.value, workdir, given=_given())
        else:
            experiment.train_and_evaluate(CONFIG.value, workdir)
        if MODE.value == "train" and not several:
            again = shlex.join(["python", *sys.argv, "--mode=evaluate"])
            hint = "to judge it again, with other fields of sample and evaluate:"
            tell(hint + (" " if len(hint) + len(again) < columns() else "\n  ") + again)
    except UserError as error:
        _fail(error, 2)
    except experiment.Diverged as error:
        _fail(error, 1)
    except experiment.Interrupted as stop:
        tell(str(stop))
        sys.exit(128 + stop.signal)


def _open_streams() -> None:
    """What was closed before the start leads nowhere: else a file of the run gets its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


def _given() -> set[str]:
    """The fields, or groups of them, that the user chose for an evaluation."""
    flag = FLAGS["config"]
    groups = {"sample", "evaluate"} if flag.config_filename != DEFAULT else set()
    return {*flag.override_values, *groups}


if __name__ == "__main__":
    _open_streams()
    app.run(main, flags_parser=parse)
