"""The benchmarks compare ways to the same numbers, and say what they measured."""

import json
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import (
    accuracy,
    compiled,
    likelihood,
    measure,
    methods,
    objective,
    overhead,
    startup,
    throughput,
    together,
    tradeoff,
)
from configs import cifar_compressed
from hsjax import batches, data, losses, statistics, training
from hsjax.inference import build_inference
from hsjax.methods import METHODS


@pytest.mark.parametrize("form", [measure.masked_statistics, measure.cumulative_statistics])
def test_every_form_gives_the_same_statistics(form):
    x = jax.random.normal(jax.random.key(0), (2, 9, 30))
    for a, b in zip(form(x, 1e-3), statistics.coordinate_moments(x, 1e-3), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


COMMANDS = [
    *(accuracy, compiled, likelihood, methods, objective, overhead, startup),
    *(throughput, together, tradeoff),
]


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_help_explains_each_flag_in_80_columns(module, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    flags = [i for i, line in enumerate(lines) if line.startswith("  -")]
    assert len(flags) >= 2
    assert module is tradeoff or any("minute" in line or "hour" in line for line in lines)
    # Beside the flag, or in the next line, further in.
    assert all(lines[i][24:].strip() or lines[i + 1].startswith(24 * " ") for i in flags)


OVER = {"median": 0.98, "low": 0.979, "high": 12.3}
GRADIENTS = [f"{form} gradient" for form in ("ours", "autodiff", "masked")]
MEASURED = {
    objective: {
        **{"batch": 2000, "n": 10_000, "milliseconds": dict.fromkeys(GRADIENTS, 12345.678)},
        **{
            "over_floor": dict.fromkeys(GRADIENTS, OVER),
            "over_ours": dict.fromkeys(GRADIENTS, OVER),
        },
    },
    overhead: {
        "milliseconds_per_step": {"standard": 12345.67},
        "over_standard": {"spherical": OVER, "masked": OVER},
    },
    startup: [
        {"start": "cold", "total": OVER, "seconds": dict.fromkeys(startup.STAGES, 123.456)},
    ],
    together: {
        "devices": 8,
        "milliseconds_per_step": {"alone": 1234.56, "together": 1234.56},
        "gain": OVER,
    },
    compiled: {
        **{"kernels": 12_345, "moved_bytes": 10**10, "temporary_bytes": 10**10},
        "estimated_cycles": 123_456_789,
    },
}


@pytest.mark.parametrize("module", MEASURED, ids=lambda module: module.__name__)
def test_a_table_fits_80_columns_and_ctrl_c_is_one_line(module, monkeypatch, tmp_path, capsys):
    measured = iter([MEASURED[module]])

    def measure(*_, **__):
        for row in measured:
            return row
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr("os._exit", lambda status: None)
    out = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", f"--out={out}"])
    with pytest.raises(SystemExit, match="130"):
        module.main()
    output, error = capsys.readouterr()
    assert error == "error: interrupted: repeat the command\n"
    assert max(map(len, output.splitlines())) <= 80
    table = output.partition("\n\n")[2].splitlines()
    assert len(table) >= 2
    assert len(json.loads(out.read_text())["rows"]) >= 1  # what was measured is kept


def test_the_lines_of_throughput_fit_80_columns(capsys):
    names = ("ours", "ours, XLA's gradients", "PyTorch, two updates")
    times = {name: np.full(4, 1e-3) for name in names}
    throughput.show(throughput.row_of("evaluation", "bfloat16", 2000, times))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_methods_are_compared_with_the_standard_vae(monkeypatch, capsys, tmp_path):
    """By name, those with a name of their own too; the table fits 80 columns."""
    program = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=1))
    seen = []

    def stepper(kind, *_):
        return lambda: seen.append(kind), program

    monkeypatch.setattr(methods, "stepper", stepper)
    monkeypatch.setattr("os._exit", lambda status: None)
    for given in (["island", "standard"], []):
        seen.clear()
        out = tmp_path / "methods.json"
        monkeypatch.setattr(sys, "argv", ["methods", "--quick", f"--out={out}", *given])
        methods.main()
        kinds = [row["kind"] for row in json.loads(out.read_text())["rows"]]
        assert (kinds == ["standard", "island"]) if given else (set(METHODS) < set(kinds))
        assert sorted(seen) == sorted(6 * kinds)
        *table, _ = capsys.readouterr().out.splitlines()  # the last one has the path
        assert max(map(len, table)) <= 80
    monkeypatch.setattr(sys, "argv", ["methods", "vae"])
    with pytest.raises(SystemExit, match="2"):
        methods.main()
    assert "'vae' is no method: choose from standard, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (objective, "ours autodiff masked floor"),
        (overhead, "standard spherical masked paper"),
        (methods, "kind standard"),
        (together, "alone together gain"),
        (throughput, "ours streamed gradients joint updates"),
        (
            startup,
            " ".join((*startup.STAGES, "cold", "warm")).replace("trace lower", "trace, lower,"),
        ),
    ],
)
def test_a_legend_says_what_the_words_of_a_table_mean(module, words):
    assert set(words.split()) <= set(module.LEGEND.split())


@pytest.mark.slow
def test_objective_rows(tmp_path):
    row = objective.measure(batch=8, n=6, rounds=2)
    assert row["over_ours"]["ours gradient"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert {"ours gradient", "autodiff gradient", "masked gradient"} < set(row["milliseconds"])
    measure.write(tmp_path / "a" / "o.json", [row], threads=3)
    written = json.loads((tmp_path / "a" / "o.json").read_text())
    assert (written["rows"], written["threads"]) == ([row], 3)


@pytest.mark.slow
def test_overhead_measures_the_form_it_names(monkeypatch):
    """The masked step holds an n x n product; ours does not."""
    small = cifar_compressed.get_config()
    small.model.stages = (4,)
    monkeypatch.setattr(cifar_compressed, "get_config", lambda: small)
    for kind, has in (("spherical", False), ("masked", True)):
        run, program = overhead.stepper(kind, 250, "float32", 4, 1)
        assert ("250,250" in program.as_text()) == has
        assert int(run().step) == 1


def test_every_round_runs_each_function_once_in_another_order():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "abcd"}
    times = measure.interleave(functions, rounds=6)
    assert "".join(called[:4]) == "abcd"  # to warm up
    rounds = ["".join(called[i : i + 4]) for i in range(4, len(called), 4)]
    assert [sorted(r) for r in rounds] == 6 * [list("abcd")]
    assert len(set(rounds)) > 3
    assert list(times) == list("abcd")


@pytest.mark.slow
def test_runs_together_take_turns_with_one_alone(monkeypatch):
    row = together.measure("digits_compressed", runs=2, rounds=2)
    assert (row["runs"], row["devices"]) == (2, 2)
    assert 0.2 < row["gain"]["median"] < 5


def test_throughput_counts_images():
    """Batches of 5 images in 0.1 s each are 50 images a second."""
    times = {"ours": np.full(4, 0.1), "PyTorch": np.full(4, 0.2)}
    row = throughput.row_of("training", "float32", 5, times)
    assert row["images_per_second"] == {"ours": pytest.approx(50), "PyTorch": pytest.approx(25)}
    assert row["ours_over"]["PyTorch"]["median"] == pytest.approx(2)


def test_throughput_times_the_evaluation_of_a_run(config, monkeypatch):
    monkeypatch.setattr(throughput, "config_of", lambda dtype, batch: config)
    monkeypatch.setattr(throughput, "SHAPE", (6, 10, 1))  # those of the config's data, so that
    monkeypatch.setattr(throughput, "COUNT", 44)  # the programs are those of other tests
    times = throughput.evaluation("float32", batch=8, rounds=2, count=1)
    assert list(times) == ["ours"]
    assert times["ours"].shape == (2,)


def test_throughput_without_pytorch_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", ["throughput", "--torch"])
    with pytest.raises(SystemExit, match="2"):
        throughput.main()
    assert "--torch needs PyTorch" in capsys.readouterr().err


def test_startup_stages_add_up(config):
    def load(config):
        return data.of_config(config.data)

    begin = time.monotonic()
    seconds = startup.first_step(config, load, begin)
    elapsed = time.monotonic() - begin
    assert tuple(seconds) == startup.STAGES
    assert all(0 < s for s in seconds.values())
    assert 0.5 * elapsed < sum(seconds.values()) <= elapsed


def test_kernels_and_bytes_are_counted_off_a_program():
    program = """
%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %twice = f32[4]{0} add(%p, %p), metadata={op_name="f(x)"}
}

ENTRY %main (x: f32[4]) -> bf16[4] {
  %x = f32[4]{0} parameter(0)
  %loop = f32[4]{0} while(%x), condition=%c, body=%body
  ROOT %out = bf16[4]{0} fusion(%loop, %x), kind=kLoop, calls=%fused
}
"""
    # Read and written: 3 · 16 in the body; 2 · 16 by the loop and 2 · 16 + 8 by the fusion.
    assert compiled.cost(program) == {"body": (1, 48), "ENTRY": (2, 72)}


@pytest.mark.slow
def test_a_warm_start_reads_what_the_cold_one_compiled():
    cold, warm = startup.measure("digits_compressed", rounds=1)
    assert warm["seconds"]["compile"] < 0.5 * cold["seconds"]["compile"]
    assert warm["seconds"]["initial"] < 0.5 * cold["seconds"]["initial"]


def as_torch(tree, model) -> dict[str, np.ndarray]:
    """Our parameters, statistics or gradients by PyTorch's names and in its layout."""
    channels, height, width = model.decoder.small
    features = np.arange(height * width * channels).reshape(height, width, channels)
    features = features.transpose(2, 0, 1).ravel()
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        *module, kind = (str(key.key) for key in path)
        name = ".".join([*module, names.get(kind, kind)])
        x = np.asarray(leaf)
        if name.startswith(("decoder.head.", "decoder.norm.")):
            x = x[..., features]
        if name == "encoder.head.weight":
            x = x[features]
        if kind == "kernel":
            x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
        arrays[name] = x.copy()
    return arrays


@pytest.fixture
def twins():
    """Our network and one in PyTorch with its parameters and statistics; none is a round number."""
    torch_vae = pytest.importorskip("benchmarks.torch_vae", exc_type=ImportError)
    config = throughput.config_of("float32", 6)
    config.model.latent_dim, config.model.stages = 5, (2, 4)
    tiny, state = training.create(config, (8, 12, 3), 6)
    leaves, structure = jax.tree.flatten((state.params, state.batch_stats))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.2 * jax.random.uniform(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params, batch_stats = jax.tree.unflatten(structure, leaves)
    state = state._replace(params=params, batch_stats=batch_stats)

    def twin(dtype="float32"):
        model = torch_vae.VAE(tiny.shape, 5, (2, 4), getattr(torch_vae.torch, dtype))
        arrays = as_torch(params, model) | as_torch(batch_stats, model)
        model.load_state_dict(torch_vae.tensors(arrays))  # refuses a missing or unknown name
        return model

    images = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), dtype=np.uint8)
    return torch_vae, config, tiny, state, twin, images


def test_pytorch_network_is_the_same(twins):
    torch_vae, config, tiny, state, twin, images = twins
    ours = build_inference(tiny, training.build_objective(config))
    latent = ours.encode(state, images)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.05)):
        other = torch_vae.inference(twin(dtype), "cpu")
        for a, b in zip(latent, other.encode(None, images), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        z = np.asarray(latent.mean)
        a, b = ours.decode(state, z), other.decode(None, z)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    full = torch_vae.VAE(throughput.SHAPE, throughput.N)
    assert sum(p.numel() for p in full.parameters()) == 882_323
    for module in full.modules():
        if isinstance(module, torch_vae.nn.modules.batchnorm._BatchNorm):
            assert (module.momentum, module.eps) == (pytest.approx(1 - 0.9), 1e-5)


def test_pytorch_terms_and_gradients_are_the_same(twins):
    """In training mode, for the step that updates both at once and for the one that doesn't."""
    torch_vae, config, tiny, state, twin, images = twins
    torch = torch_vae.torch
    objective = training.build_objective(config)
    noise = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)

    @jax.jit
    def gradient(params):
        def loss_of(params):
            model = training.Model(tiny, objective, params, state.batch_stats)
            x = batches.prepare(images)
            latent = model.encode(x, train=True)
            output = model.decode(latent.mean + latent.std * noise, train=True)
            parts = tiny.method.regulariser(objective.hyper, latent, None)
            mse = losses.squared_error(x, output)
            return mse + objective.beta * parts.pop("regulariser"), (mse, parts)

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    (loss, (mse, parts)), ours = gradient(state.params)
    other = torch_vae.tensors(objective)
    x = torch_vae.prepare(torch.tensor(images).permute(0, 3, 1, 2))
    model = twin()
    with torch.no_grad():
        latent = model.encoder(x)
        output = model.decode(torch_vae.sample(latent, torch.tensor(noise)))
        found = [torch_vae.loss(x, output, latent, other), torch_vae.squared_error(x, output)]
        found += torch_vae.spherical_kl(latent, other.hyper)
    expected = [loss, mse, *(parts[name] for name in losses.SphericalTerms._fields)]
    np.testing.assert_allclose([float(t) for t in found], expected, rtol=1e-4)

    ours = as_torch(ours, model)
    largest = max(np.abs(g).max() for g in ours.values())
    for form in (torch_vae.joint, torch_vae.two_updates):
        model = twin()
        step = form(model, other, 1e-3)
        step(x, torch.tensor(noise))
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(
                parameter.grad, ours[name], rtol=1e-3, atol=1e-5 * largest, err_msg=name
            )
        before = [p.detach().clone() for p in model.parameters()]
        pictures = torch.tensor(images).permute(0, 3, 1, 2)
        torch_vae.trainer(step, pictures, torch.arange(6)[None], 5)()
        pairs = zip(before, model.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs)
