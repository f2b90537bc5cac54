"""The leaderboard: who is ahead, what is a tie, and that its commands train what it shows."""

import ast
import json
import re
import shlex
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from hsjax import leaderboard, settings, sweep
from hsjax.errors import UserError


def row(kind, strength, seed, mse, distances, split="test", *changes):
    """A finished run that was judged under these samplers."""
    point = sweep.Point(kind, strength, 8, seed)
    config = sweep.config_of("digits", point, [f"evaluate.split={split}", *changes])
    samplers = {name: {"to_test": x, "precision": 0.5} for name, x in distances.items()}
    networks = [{"distance": "FD[x]", "samplers": samplers}]
    numbers = {"mse_sum": mse, "mse_per_value_x1000": mse, "knn_accuracy": 0.9, "split": split}
    numbers |= {"generation": networks, "sample_count": 9}
    shown = {"config": sweep.identity(config), "numbers": numbers, "device": "cpu"}
    return point._asdict() | shown


SPLITS = ("test", "validation")
ROWS = [
    row("standard", 0.1, 0, 1.0, {"own": 40.0, "gmm": 10.0}),
    row("standard", 0.3, 0, 3.0, {"own": 20.0, "gmm": 30.0}),
    row("standard", 0.1, 0, 1.0, {"own": 40.0, "gmm": 30.0}, "validation"),
    row("standard", 0.3, 0, 3.0, {"own": 20.0, "gmm": 10.0}, "validation"),
    row("vampprior", 0.3, 0, 2.0, {"own": 15.0, "gmm": 12.0, "vmf": 5.0}),
    row("vampprior", 0.3, 1, 2.0, {"own": 16.0, "gmm": 14.0}),
    row("vampprior", 0.3, 0, 2.0, {"own": 15.0, "gmm": 12.0}, "validation"),
    row("autoencoder", 1.0, 0, 0.5, {"own": 90.0, "gmm": 11.0}),
]


def test_strengths_and_samplers_are_chosen_on_validation_images():
    (board,) = leaderboard.boards(ROWS)
    chosen = {line.entry.kind: line for line in leaderboard.choices(board, leaderboard.fitted)}
    # The test images would have said 0.1, and vmf.
    assert str(chosen["standard"]) == "standard 0.3, gmm"
    assert chosen["standard"].mean() == 30.0
    assert str(chosen["vampprior"]) == "vampprior 0.3, gmm"
    assert chosen["vampprior"].of("to_test") == [12.0, 14.0]
    assert leaderboard.Line(chosen["vampprior"].entry, "vmf").of("to_test") == [5.0]
    assert str(chosen["autoencoder"]) == "autoencoder, gmm"  # of which none was held out
    own = {line.entry.kind: line for line in leaderboard.choices(board, leaderboard.own)}
    assert str(own["standard"]) == "standard 0.3, own"
    # Seeds that the chosen strength alone has change no choice.
    more = [row("standard", 0.3, 1, 3.0, {"own": 90.0, "gmm": 90.0}, s) for s in SPLITS]
    (board,) = leaderboard.boards(ROWS + more)
    *nearer, last = leaderboard.choices(board, leaderboard.fitted)
    assert str(last) == "standard 0.3, gmm"
    assert last.mean() == 60.0
    assert [line.mean() for line in nearer] == [11.0, 13.0]


def test_runs_are_joined_by_what_was_trained_alike():
    more = [
        row("standard", 0.1, 0, 1.0, {"flow": 7.0}),  # the same run, judged once more
        row("standard", 0.1, 0, 1.0, {"own": 1.0}, "test", "evaluate.batch_norm=batch"),
        {**ROWS[0], "numbers": {}},
        row("standard", 0.1, 0, 1.0, {"own": 1.0}, "test", "evaluate.latent_scale=1.5"),
    ]
    ours, batch, other = leaderboard.boards(json.loads(json.dumps(ROWS + more)))
    titles = "Digits, evaluate.latent_scale 1.0", "Digits, evaluate.latent_scale 1.5"
    assert (ours.title, other.title, batch.title) == (*titles, "Digits, batch statistics")
    assert (ours.name, other.name, batch.name) == ("digits_1", "digits_2", "digits_batch")
    assert [len(entry.runs) for entry in ours.tested] == [1, 1, 2, 1]
    assert ours.tested[0].samplers == ["own", "gmm", "flow"]
    assert leaderboard.Line(ours.tested[0], "own").mean() == 40.0
    assert len(other.tested) == 1
    with pytest.raises(UserError, match="no finished run"):
        leaderboard.boards(more[2:3])
    other = row("standard", 0.1, 1, 1.0, {"own": 1.0}, "test", "model.project=True")
    with pytest.raises(UserError, match="judged on test images"):
        leaderboard.boards(ROWS[2:4])
    with pytest.raises(UserError, match=r"a line lacks config: give files of hsjax sweep"):
        leaderboard.boards([{k: v for k, v in ROWS[0].items() if k != "config"}])
    trained = row("standard", 0.1, 1, 1.0, {"own": 1.0}, "test", "train.ema=0.9")
    with pytest.raises(UserError, match=r"runs of train.ema=0.0 and of 0.9"):
        leaderboard.boards([*ROWS, trained])
    with pytest.raises(UserError, match=r"runs of model.project=False and of True"):
        leaderboard.boards([*ROWS, other])


def test_places_are_shared_within_the_spread_over_seeds():
    values = [[10.0, 12.0], [11.0], [11.5, 12.5], [20.0]]
    shares = np.array([np.sqrt(2) / 11, np.sqrt(0.5) / 12])
    share = leaderboard.spread(values)
    assert share == pytest.approx(np.sqrt(np.mean(shares**2)))
    errors = share * np.array([11 / np.sqrt(2), 11, 12 / np.sqrt(2), 20])
    assert 2 * np.hypot(errors[0], errors[2]) > 1  # one apart: a tie
    assert 2 * np.hypot(errors[1], errors[3]) < 9
    assert leaderboard.places(values) == [1, 1, 1, 4]
    assert leaderboard.places(values, least=False) == [2, 2, 2, 1]
    assert leaderboard.places([[3.0], [1.0], [2.0]]) == [3, 1, 2]  # one seed: every difference
    pair = [10.0, 12.0], [12.0, 14.0]
    assert leaderboard.places(list(pair)) == [1, 1]
    assert leaderboard.places([8 * values for values in pair]) == [1, 2]  # more seeds say more
    assert leaderboard.spread([[3.0], [1.0]]) == 0.0


def test_the_ratio_is_at_equal_error():
    (board,) = leaderboard.boards(ROWS)
    line = leaderboard.Line(board.tested[2], "gmm")
    assert leaderboard.over_standard(board, line, "gmm") == pytest.approx(13.0 / 20.0)
    assert leaderboard.over_standard(board, line, "own") == pytest.approx(13.0 / 30.0)
    below = leaderboard.Line(board.tested[3], "gmm")
    assert np.isnan(leaderboard.over_standard(board, below, "gmm"))
    assert np.isnan(leaderboard.over_standard(board, line, "flow"))


@pytest.mark.parametrize("kind", ["standard", "spread", "svae", "published_near"])
def test_a_command_trains_the_run_that_it_stands_beside(kind):
    changes = ["train.epochs=7", "model.stages=(8,16)", "data.validation_share=0.1", "data.dir=x"]
    changes += ["method.std_angle_gain=7.0"] * kind.startswith("published")
    config = sweep.identity(sweep.config_of("digits", sweep.Point(kind, 0.25, 8, 3), changes))
    program, command, of, *flags = shlex.split(leaderboard.train_command(kind, config))
    assert (program, command, of) == ("hsjax", "train", f"--config=digits:{kind}")
    there = sweep.base("digits", kind)
    for flag in flags:
        field, _, text = flag.removeprefix("--config.").partition("=")
        there.update_from_flattened_dict({field: ast.literal_eval(text)})
    made = sweep.identity(there)
    for group in ("data", "model", "method", "loss"):
        assert made[group] == config[group]
    kept = {name: config["train"].pop(name) for name in ("checkpoints_kept",)}
    assert made["train"] == config["train"] | {"checkpoints_kept": 3}
    assert kept == {"checkpoints_kept": 1}
    assert made["seed"] == 3


def test_the_pages_are_whole(tmp_path, monkeypatch, capsys):
    lines, page = tmp_path / "lines.jsonl", tmp_path / "docs" / "page.md"
    lines.write_text("\n".join(map(json.dumps, ROWS)))
    costs = tmp_path / "costs.json"
    costs.write_text('{"rows": [{"kind": "vampprior", "over_standard": {"median": 1.25}}]}')
    command = ["leaderboard", str(lines), f"--out={page}", f"--costs={costs}"]
    monkeypatch.setattr(sys, "argv", command)
    leaderboard.main()
    text = page.read_text()
    assert text.startswith("# Leaderboard\n")
    assert "| lowest FD, own samples, fixed prior | `standard 0.3` (20) |" in text
    assert "learned priors too | `vampprior 0.3` (15.5 ± 0.7) |" in text
    assert "lowest reconstruction error, MSE (μ) | `autoencoder` (0.5) |" in text
    assert re.search(r"\| \[`vampprior 0.3`\].* 0.65 \| 1.25 \|", text)
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert imread(page.parent / name).std() > 0.05
    for name, anchor in re.findall(r"[^!]\[[^]]*\]\(([^)#]*)#([^)]*)\)", text):
        assert f"\n## {anchor}\n" in (page.parent / name).read_text()
    page.write_text("# Ours\n\nA verdict.\n" + text[text.index("<!--") :])
    leaderboard.main()
    assert page.read_text().replace("# Ours\n\nA verdict.", leaderboard.LEGEND.strip()) == text


def test_what_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["leaderboard", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit):
        leaderboard.main()
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    command = ["leaderboard", str(tmp_path / "rows.jsonl"), "--costs=none.json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        leaderboard.main()
    assert "--costs=none.json: no file of benchmarks.methods" in capsys.readouterr().err
    (board,) = leaderboard.boards([row("swae", 1.0, 0, 1.0, {"own": 1.0})])
    with pytest.raises(UserError, match="under own and a fitted sampler"):
        leaderboard.choices(board, leaderboard.fitted)


def test_every_method_has_a_family():
    named = {method for methods in leaderboard.FAMILIES.values() for method in methods}
    assert named == {one.method for one in settings.all_settings().values()}
