"""The documents: their code runs and prints what they say, and no message lacks an explanation."""

import ast
import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from hsjax.evaluation import LATENT_METRICS
from hsjax.methods import METHODS
from hsjax.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e-?\d+)?")
PAGES = [
    page.relative_to(ROOT)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if BLOCK.search(page.read_text())
]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_code_blocks_run_and_print_what_is_shown(page):
    text, names = (ROOT / page).read_text(), {}
    with contextlib.ExitStack() as kept:
        for table in (SAMPLERS, METHODS, LATENT_METRICS):  # pages add to them
            kept.enter_context(mock.patch.dict(table))
        for block in BLOCK.finditer(text):
            # Lines of the document, for the traceback.
            code = "\n" * text.count("\n", 0, block.start(1)) + block[1]
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, page, "exec"), names)
            if block[2] is not None:
                assert_same_text(printed.getvalue(), block[2])


def assert_same_text(ours, shown):
    """Equal words, and numbers equal but for another machine's last digits."""
    assert "".join(NUMBER.sub("#", ours).split()) == "".join(NUMBER.sub("#", shown).split())
    ours, shown = ([float(x) for x in NUMBER.findall(text)] for text in (ours, shown))
    np.testing.assert_allclose(ours, shown, rtol=0.05, atol=0.11)


def test_the_pages_with_code_are_found():
    assert {str(page) for page in PAGES} >= {"README.md", "docs/method.md", "docs/examples.md"}


DOCTESTED = [
    f"hsjax.{n}"
    for n in (
        *("coordinates", "distances", "losses", "methods", "metrics.ood", "posteriors"),
        "statistics",
    )
]


@pytest.mark.parametrize("name", ["hsjax", *DOCTESTED, "hsjax.samplers"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    files = pkgutil.iter_modules(module.__path__) if name == "hsjax.samplers" else ()
    parts = [importlib.import_module(f"{name}.{file.name}") for file in files]
    found = [doctest.testmod(part) for part in (module, *parts)]
    assert sum(result.attempted for result in found) >= 2
    assert not any(result.failed for result in found)


def test_importing_the_library_loads_neither_network_nor_plotting_libraries():
    heavy = "flax orbax tensorflow matplotlib optax clu ml_collections sklearn tensorboardX"
    code = f"import hsjax, sys; print(*set('{heavy}'.split()) & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_namespace_is_what_it_says():
    import hsjax

    for name in hsjax.__all__:
        assert f"`hsjax.{name}`" in hsjax.__doc__
        assert getattr(hsjax, name).__doc__


def test_the_reference_is_built_without_a_warning(tmp_path):
    options = ("-W", "-E", "-q", "-D", "html_theme=basic")  # which is written in half the time
    command = [sys.executable, "-m", "sphinx", *options, "docs", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    library = (tmp_path / "api" / "library.html").read_text()
    assert 'id="hsjax.coordinates.to_spherical"' in library
    assert "ArrayLike" in library
    assert r"\prod_{k=1}^{n-1}" in (tmp_path / "method.html").read_text()


def test_inline_mathematics_is_as_github_reads_it():
    """On one line, and without the escapes that Markdown takes for its own."""
    text = (ROOT / "docs" / "method.md").read_text()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    formulas = re.findall(r"\$[^$]*\$", prose)
    assert len(formulas) > 50
    assert [f for f in formulas if "\n" in f or re.search(r"\\[,;!{}]", f)] == []


def message_pattern(node):
    """A regular expression for all texts that an expression of literals and values can be."""
    match node:
        case ast.Constant(value=str(text)):
            return ".*".join(re.escape(part) for part in re.split("%[sd]", text))
        case ast.JoinedStr(values=parts):
            return "".join(map(message_pattern, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return message_pattern(left) + message_pattern(right)
        case ast.IfExp(body=body, orelse=other):
            return f"({message_pattern(body)}|{message_pattern(other)})"
        case _:
            return ".*"


def messages():
    """Patterns of all that main.py, the package and the benchmarks tell a user who can mend it."""
    raised = {"UserError", "Diverged", "Interrupted", "Error", "warning", "fail"}
    files = [ROOT / "main.py", *ROOT.glob("hsjax/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and node.args:
                called = getattr(node.func, "attr", getattr(node.func, "id", None))
                pattern = message_pattern(node.args[0])
                # A message that is someone else's but for a colon is not ours to explain.
                if called in raised and len(re.sub(r"\W", "", pattern)) > 5:
                    yield pattern
            elif isinstance(node, ast.Return) and file.name == "config.py":  # of a field's rule
                wanted = message_pattern(node.value)
                if len(re.sub(r"\W", "", wanted)) > 5:
                    yield f".* is .*: {wanted}"


def test_each_message_is_explained_and_each_explained_message_exists():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    shown = [row[2] for row in re.finditer(r"^\| (`+)(.+?)\1 \|", page, re.MULTILINE)]
    patterns = list(messages())
    assert len(patterns) > 50
    assert [p for p in patterns if not any(re.fullmatch(p, text) for text in shown)] == []
    assert [text for text in shown if not any(re.fullmatch(p, text) for p in patterns)] == []
