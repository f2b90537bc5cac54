"""What the command `hsjax` does with a trained model, and the list of all fields."""

import argparse
import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from difflib import get_close_matches

import numpy as np

from hsjax import data, exporting, output, runs, settings
from hsjax.cli import COMMANDS, CONFIGS, start
from hsjax.errors import UserError
from hsjax.files import workdir_path
from hsjax.methods import METHODS
from hsjax.samplers import SAMPLERS
from hsjax.terminal import command, counted, fold, tell


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error as one line."""

    def __init__(self, name: str, text: str = ""):
        text = f"{COMMANDS[name].capitalize()}. {text}"
        super().__init__(prog=f"hsjax {name}", description=text, allow_abbrev=False)

    def error(self, message):
        raise UserError(f"{message}: {self.prog} --help explains the flags")


def _of_a_run(*about: str) -> _Parser:
    parser = _Parser(*about)
    parser.add_argument(
        "--workdir",
        required=True,
        help="folder of a run, an exported folder, or a checkpoint of the authors (FILE.pt)",
    )
    parser.add_argument("--out", required=True, help="new file or folder to write")
    return parser


_SAMPLER = f"one of {', '.join(SAMPLERS)} (default: the run's sample.sampler)"
_SEED = "seed of the random numbers (default: 0)"
_OUT = "--out=FOLDER gets PNGs, NAME.npz one array (arr_0, uint8), NAME.png one picture."


def _load(given) -> runs.Run:
    start()
    return runs.load(given.workdir)


def _save(given, batches: Iterator[np.ndarray], count: int, sampler="", **options) -> None:
    of = f" of {sampler}" if sampler else ""
    written = output.save(workdir_path(given.out), counted(batches, count, "images"), **options)
    tell(f"{written} images{of}: {given.out}")


@command
def sample() -> None:
    """Write new images of a trained model."""
    parser = _of_a_run("sample", _OUT)
    parser.add_argument("--count", type=int, default=64, help="number of images (default: 64)")
    parser.add_argument("--sampler", help=_SAMPLER)
    parser.add_argument("--seed", type=int, default=0, help=_SEED)
    given = parser.parse_args()
    run = _load(given)
    sampler = given.sampler or run.config.sample.sampler
    _save(given, run.sample_batches(given.count, sampler, given.seed), given.count, sampler)


@command
def reconstruct() -> None:
    """Write what a trained model makes of images: of its own data set, or of another."""
    parser = _of_a_run("reconstruct", _OUT)
    parser.add_argument("--count", type=int, help="only the first COUNT images (default: all)")
    parser.add_argument(
        "--split", choices=("test", "train"), default="test", help="which images (default: test)"
    )
    parser.add_argument("--data", help="a data set, as in data.name (default: the run's)")
    parser.add_argument("--data-dir", help="its folder, as in data.dir (default: the run's)")
    parser.add_argument(
        "--originals", action="store_true", help="write the images themselves, for comparison"
    )
    given = parser.parse_args()
    run = _load(given)
    fields = run.config.data.copy_and_resolve_references()
    fields.dir = given.data_dir or fields.dir
    dataset = data.of_config(fields, given.data or "")
    images = getattr(dataset, f"{given.split}_images")
    if given.count is not None:
        if not 1 <= given.count <= len(images):
            raise UserError(f"--count={given.count}: there are {len(images)} images")
        images = images[: given.count]
    size = run.config.train.batch_size
    batches = (images[i : i + size] for i in range(0, len(images), size))
    made = map(_as_floats if given.originals else run.reconstruct, batches)
    _save(given, made, len(images))


def _as_floats(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255.0)


@command
def interpolate() -> None:
    """Write images on the way between two, along the sphere."""
    parser = _of_a_run("interpolate", _OUT)
    parser.add_argument("--count", type=int, default=8, help="number of pairs (default: 8)")
    parser.add_argument(
        "--steps", type=int, default=10, help="images of a pair, ends included (default: 10)"
    )
    parser.add_argument(
        "--between",
        choices=("images", "samples"),
        help="pairs of test images, or of samples (default: images, if the run has any)",
    )
    parser.add_argument("--sampler", help=_SAMPLER)
    parser.add_argument("--seed", type=int, default=0, help=_SEED)
    given = parser.parse_args()
    run = _load(given)
    count = 2 * given.count
    if given.between == "samples" or (given.between is None and run.is_exported):
        z = run.sample_latents(count, given.sampler, given.seed)
    else:
        means = run.posterior("test").mean
        if not 2 <= count <= len(means):
            raise UserError(
                f"--count={given.count}: make it 1 to {len(means) // 2} pairs of images"
            )
        z = means[np.random.default_rng(given.seed).permutation(len(means))[:count]]
    rows = run.interpolate(z[: given.count], z[given.count :], given.steps)
    _save(given, iter(rows), given.count * given.steps, columns=given.steps)


@command
def export() -> None:
    """Write a trained model as a folder: weights, fits of samplers, a card."""
    parser = _of_a_run("export")
    formats = ", ".join(exporting.FORMATS)
    parser.add_argument("--format", default="safetensors", help=f"{formats} (default: the first)")
    parser.add_argument(
        "--samplers", help="samplers to include, such as prior,gmm (default: all that were judged)"
    )
    parser.add_argument("--half", action="store_true", help="write float16, half the size")
    parser.add_argument("--note", default="", help="a text for the card")
    given = parser.parse_args()
    run = _load(given)
    samplers = None if given.samplers is None else [x for x in given.samplers.split(",") if x]
    options = {"format": given.format, "half": given.half, "note": given.note}
    exporting.write(run, workdir_path(given.out), samplers=samplers, **options)
    tell(f"exported: {given.out}")


@command
def fields() -> None:
    """List every field of a config with its default and its meaning, or those of a method."""
    parser = _Parser("fields")
    parser.add_argument(
        "which", nargs="?", help="a group of fields such as train, one field, or a method"
    )
    which = parser.parse_args().which
    if which in settings.all_settings():
        setting = settings.find(which)
        if which not in METHODS:
            chosen = ", ".join(f"{field}={value}" for field, value in setting.fields.items())
            tell(fold(f"{which} is {setting.method} with {chosen}"))
        listed = list(_of_method(setting.method))
        if not listed:
            tell(f"{which} has no fields of its own")
    else:
        listed = [x for x in _of_config() if not which or f"{x[0]}.".startswith(f"{which}.")]
        if not listed:
            alike = get_close_matches(which, [name for name, *_ in _of_config()], 1)
            meant = f" (did you mean {alike[0]}?)" if alike else ""
            raise UserError(
                f"{which} is no group, field or method{meant}; the methods are {', '.join(METHODS)}"
            )
    for name, default, meaning in listed:
        tell(f"{name} = {default}")
        tell(fold(f"    {meaning}", 4))
    if not which:
        tell("The fields of a method: hsjax fields METHOD")


def _of_config() -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of the fields of configs/default.py, from its comments."""
    source = (CONFIGS / "default.py").read_text()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    functions = (x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef))
    (function,) = (x for x in functions if x.name == "fields")
    last = function.lineno
    for statement in function.body:
        target = getattr(statement, "targets", [None])[0]
        assert statement.end_lineno is not None
        lines = range(last + 1, statement.end_lineno + 1)
        last = statement.end_lineno
        if isinstance(target, ast.Attribute) and len(statement.targets) == 1:  # type: ignore[attr-defined]
            name = ast.unparse(target).removeprefix("config.")
            meaning = " ".join(comments[line] for line in lines if line in comments)
            value = ast.unparse(statement.value)  # type: ignore[attr-defined]
            yield (
                ("method.name", "'standard'", meaning)
                if name == "method"
                else (name, value, meaning)
            )


def _of_method(name: str) -> Iterator[tuple[str, str, str]]:
    """The same for a method's fields, from the docstring of its `hyper`."""
    hyper = METHODS[name].hyper
    explained = inspect.getdoc(hyper) or ""
    for field, parameter in inspect.signature(hyper).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found = re.search(rf"^  {field}: (.*(?:\n    .*)*)", explained, re.MULTILINE)
            meaning = " ".join(found[1].split()) if found else ""
            yield f"method.{field}", repr(parameter.default), meaning
