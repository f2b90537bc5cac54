"""What is shipped: an sdist that can test itself, a wheel that works outside of the checkout."""

import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_SOURCE = (".*", "*.egg-info", "__pycache__", "_build", "build", "dist", "runs")
LIBRARY = """
import jax, jax.numpy as jnp, numpy as np, hsjax
from hsjax import coordinates, losses, samplers, statistics

z = jax.random.normal(jax.random.key(0), (20, 6))
np.testing.assert_allclose(coordinates.to_cartesian(*coordinates.to_spherical(z)), z, atol=1e-5)
assert float(coordinates.radius(jnp.array([3.0, 4.0]))) == 5.0
spec = losses.paper_spec(6, compression="full")
loss = lambda mean: losses.total(losses.spherical_kl(mean, jnp.ones_like(mean), spec), spec)
assert jnp.abs(jax.jit(jax.grad(loss))(z)).sum() > 0
assert statistics.coordinate_moments(z, 1e-3)[0].shape == (6,)
for name, sampler in list(samplers.SAMPLERS.items())[1:]:  # `own` needs a method
    if "gmm" not in name and not sampler.learned:  # which scikit-learn and optax fit
        assert sampler.sample(sampler.fit(z), jax.random.key(1), 3).shape == (3, 6)
"""


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
    ours |= {f"hsjax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
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


def of_train():
    """The names under which the packages of the extra `train` are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {name_of(line) for line in project["optional-dependencies"]["train"]}
    names = importlib.metadata.packages_distributions().items()
    found = {name for name, owners in names if wanted & set(map(name_of, owners))}
    assert found >= {"PIL", "absl", "clu", "flax", "grain", "matplotlib", "ml_collections", "optax"}
    assert found >= {"orbax", "sklearn", "tensorboardX", "tensorflow_datasets", "threadpoolctl"}
    return found


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def without_train(code, *arguments):
    """Run code where the packages of the extra `train` can't be found."""
    hide = f"""
import sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {sorted(of_train())}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing)
"""
    command = (sys.executable, "-c", hide + code, *arguments)
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # it is nearly all compilation
    return subprocess.run(command, cwd=ROOT, env=quick, capture_output=True, text=True)


def test_the_library_works_without_what_trains():
    done = without_train(LIBRARY)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("from hsjax import training", "hsjax.training needs optax, which is"),
        ("import hsjax; hsjax.figures.tile", "hsjax.figures needs matplotlib, which is"),
        ("from hsjax import coordinate", "cannot import name 'coordinate' from 'hsjax'"),
    ],
)
def test_what_is_not_there_is_named(code, line):
    done = without_train(code)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert line in last
    assert ("in a clone, pip install '.[train]'" in last) == ("needs" in line)


def test_the_command_says_what_to_install():
    for code in (
        "import runpy; runpy.run_path('main.py', run_name='__main__')",
        "from hsjax.cli import main",
    ):
        done = without_train(code)
        assert done.returncode == 2
        assert done.stderr == "error: absl is not installed: in a clone, pip install '.[train]'\n"


@pytest.mark.slow
def test_the_wheel_alone_brings_three_packages_and_what_they_need(archives, tmp_path):
    """It installs from an index: a network, or pip's own settings for another."""
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", archives[1])
    listed = run(python, "-m", "pip", "list", "--format=freeze").split()
    packages = {name_of(line) for line in listed} - {"pip", "setuptools"}
    folder = next(environment.glob("lib/python*/site-packages"))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{len(packages)} packages, {size / 1e6:.0f} MB with pip: {' '.join(sorted(packages))}")
    assert packages >= {"hsjax", "jax", "jaxlib", "numpy", "scipy"}
    assert len(packages) <= 8
    elsewhere = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run(python, "-W", "error", "-c", LIBRARY, cwd=tmp_path, env=elsewhere)
