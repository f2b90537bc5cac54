"""Figure 1 of any runs, from the files that their evaluation wrote."""

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from hsjax import compare


def workdir(path, *, labelled=True, method="standard"):
    """What an evaluation leaves, as far as it is drawn."""
    rng = np.random.default_rng(0)
    path.mkdir()
    config = {"method": {"name": method}, "model": {"latent_dim": 6}}
    config["sample"] = {"sampler": "prior"}
    numbers = {"epoch": 3, "mse_sum": 1.5, "batch_norm": "batch"}
    arrays = {
        name: rng.integers(0, 256, (40, 6, 8, 1), dtype=np.uint8)
        for name in ("test images", "reconstructions", "samples: prior", "samples: vmf")
    }
    groups = rng.normal(size=(200, 3))
    arrays["groups"] = groups / np.linalg.norm(groups, axis=1, keepdims=True)
    if labelled:
        numbers["knn_accuracy"] = 0.95
        arrays |= {"tsne": rng.normal(size=(200, 2)), "test_labels": np.arange(200) % 3}
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.json").write_text(json.dumps(numbers))
    np.savez(path / "embeddings.npz", **arrays)
    return path


def test_runs_side_by_side(tmp_path, monkeypatch, capsys):
    first, second = workdir(tmp_path / "a"), workdir(tmp_path / "b", labelled=False)
    out = tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", ["compare", f"{first}:vmf", str(second), f"--out={out}"])
    compare.main()
    assert f"figure: {out}" in capsys.readouterr().out
    assert imread(out).shape[1] == 1200
    run = compare.read(f"{first}:vmf")
    assert run.title == "a\nn = 6, epoch 3, MSE 1.5"
    assert run.sampler == "vmf"
    assert compare.read(str(second)).sampler == "prior"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "nowhere holds no judged run: train it, or judge it with --mode=evaluate"),
        ("a:gmm", "a has no samples: gmm: judge it again, with that sampler among"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, text, message):
    workdir(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", text])
    with pytest.raises(SystemExit) as stopped:
        compare.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
