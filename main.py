"""Train or evaluate a run: python main.py --config=configs/digits_compressed.py."""

import errno
import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/default.py", "File of the run's config; --config.FIELD=VALUE changes a field"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config name> if not given")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Train with a process per host: TPU slice, SLURM, Open MPI"
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "The same elsewhere: HOST:PORT of process 0")
PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: how many there are")
PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: which one this is, from 0")


def parse(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake is one line and exit status 2."""
    try:
        rest = FLAGS(argv)
        if rest[1:]:
            raise flags.Error(f"unexpected argument {rest[1]!r}: fields are --config.FIELD=VALUE")
        if not Path(FLAGS["config"].config_filename).is_file():
            raise flags.Error(f"--config={FLAGS['config'].config_filename}: no such file")
        return rest
    except (AttributeError, KeyError) as error:
        # The text is that of a KeyError, quoted and escaped.
        text = str(error).replace("\\n", " ").translate(str.maketrans("", "", "'\\"))
        _fail(f"no such config field: {text}", 2)
    except (flags.Error, TypeError, ValueError) as error:
        _fail(error, 2)


def main(_) -> None:
    """Run the mode; a user's mistake is one line and exit status 2."""
    logging.set_verbosity(logging.WARNING)
    import jax

    from hsjax import devices, experiment
    from hsjax.config import UserError
    from hsjax.files import user_cache

    # A second start skips most of the compilation.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := user_cache()):
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))

    name = Path(FLAGS["config"].config_filename).stem
    workdir = WORKDIR.value or str(Path("runs") / name)
    run = {"train": experiment.train_and_evaluate, "evaluate": experiment.evaluate}[MODE.value]
    processes = COORDINATOR.value, PROCESSES.value, PROCESS.value
    try:
        if DISTRIBUTED.value or processes != (None, None, None):
            if MODE.value == "evaluate":
                raise UserError("--mode=evaluate takes one process: leave --distributed out")
            devices.connect(*processes)
        run(CONFIG.value, workdir)
    except UserError as error:
        _fail(error, 2)
    except experiment.Diverged as error:
        _fail(error, 1)
    except experiment.Interrupted as stop:
        print(stop)
        sys.exit(128 + stop.signal)
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
        _fail("interrupted: repeat the command to continue", 130)


def _fail(error: Exception | str, status: int) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
