"""What is shipped: an sdist that can test itself, a wheel that works outside of the checkout."""

import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_SOURCE = (".*", "*.egg-info", "__pycache__", "_build", "build", "dist", "runs")


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    source, out = tmp_path_factory.mktemp("source") / "hsjax", tmp_path_factory.mktemp("out")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    shutil.copytree(ROOT / ".ci", source / ".ci")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=source)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_sdist_holds_all_that_is_needed_to_test_it(archives):
    with tarfile.open(archives[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    ours = [
        path.relative_to(ROOT)
        for folder in ("benchmarks", "configs", "docs", "hsjax", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "_build"} & set(path.parts)
    ]
    assert len(ours) > 80
    assert held >= {str(path) for path in ours}
    assert held >= {".ci/run", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "main.py"}
    assert not [name for name in held if "__pycache__" in name or "_build" in name]


def test_wheel_holds_the_package_alone(archives):
    with zipfile.ZipFile(archives[1]) as archive:
        held = set(archive.namelist())
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "hsjax").rglob("*.py")}
    assert {name for name in held if ".dist-info/" not in name} == ours | {"hsjax/py.typed"}


def test_installed_wheel_works_outside_of_the_checkout(archives, tmp_path):
    environment = tmp_path / "environment"
    elsewhere = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    elsewhere = {"cwd": tmp_path, "env": elsewhere}
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", archives[1])
    run(sys.executable, *install, **elsewhere)
    packages = next(environment.glob("lib/python*/site-packages"))
    # What it depends on is this environment's; a path file's folders bring no editable install.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    code = (
        "import hsjax, jax.numpy as jnp; print(hsjax.__file__, hsjax.__version__, "
        "hsjax.coordinates.radius(jnp.array([3.0, 4.0])))"
    )
    file, version, radius = run(python, "-c", code, **elsewhere).split()
    assert Path(file).is_relative_to(environment)
    assert archives[1].name.split("-")[1] == version
    assert float(radius) == 5.0
