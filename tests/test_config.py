"""Wrong values for every field, from Python and from the command line: each is one line."""

import json
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from configs import default
from hsjax import cli, devices
from hsjax.config import check_workdir, of_evaluation, validate
from hsjax.errors import UserError
from hsjax.files import locked, workdir_path

# ml_collections', as it reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

# Strings that may be any word.
FREE = ("data.name", "data.dir", "evaluate.inception_weights", "evaluate.ood_data")
NAN, INF = math.nan, math.inf

# Wrong for a field of any type: what Python code may put there.
ANY = (
    *(b"x", object(), max, {"a": 1}, {1}, 1j, range(3), Decimal(1), np.zeros(3), np.zeros((0, 2))),
    *(np.int64(3), np.float32(0.5), np.bool_(True), np.str_("x"), [[]], ((),), (None,), (1j,)),
)
WRONG = {
    bool: (None, 0, 1, 2, 0.0, 1.0, NAN, "True", "", (), (True,)),
    int: (
        *(None, True, False, -1, -(2**63), 2**32, 2**63, 10**400, 10**5000),
        *(1.5, 2.0, NAN, INF, -INF, 1e300, "5", "x", "", (), (1,)),
    ),
    float: (
        *(True, False, -1.5, 1e300, -1e300, 10**400, -(10**5000)),
        *(NAN, INF, -INF, "1", "x", "", (), (1.0,)),
    ),
    str: (None, True, 0, 1.5, NAN, (), ("x",), "a\0b"),
    tuple: (
        *(None, True, 5, 1.5, NAN, "", "x", "16,32", (True,), (0.5,), (-1,), (2**40,), (1, 1, "x")),
        *((10**400,), (10**5000,), (NAN,), ("",), ("x",), (b"x",), (1, None), ((1,), 2)),
        *(tuple(range(1, 2000)), ("x" * 10**6,)),
    ),
}
WORDS = {
    bool: ("2", "x", "", "None", "1.0", "(True,)", "truth"),
    int: (
        *("x", "", " ", "1.5", "2.0", "1e3", "True", "None", "nan", "-1", "(5,)", "5 5"),
        *("9" * 12, "9" * 400, "9" * 5000),
    ),
    float: (
        *("x", "", " ", "1,5", "True", "None", "nan", "inf", "-inf", "1e400", "-1e300", "(1.0,)"),
        *("0x10", "9" * 400),
    ),
    str: (),
    tuple: (
        *("x", "", "None", "True", "1.5", "-1", "nan", "(", "(1.5,)", "(1, 2", "('x',)", "[1, "),
        *("(-1,)", "((1,),)", "[[]]", "{'a': 1}", "1 2", "1,,2", "1;2"),
        *("9" * 5000, "(" * 400),
    ),
}
CHOICES = ("", " ", "nonsense", "None", "0", "prior,vmf", "(", "é", "x" * 10**6)


def whole():
    """A config whose method has fields of every kind."""
    return default.get_config("spherical")


def fields(tree=None, prefix=""):
    """The default of each field by its dotted name, without asking hsjax.config."""
    for name, value in (whole().to_dict() if tree is None else tree).items():
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


FIELDS = dict(fields())


def wrong(field, by_type, more=()):
    value = FIELDS[field]
    kind = float if value is None else type(value)  # the unset ones are numbers
    choices = CHOICES if kind is str and field not in FREE else ()
    return [*by_type[kind], *more, *choices]


def with_value(field, value):
    config = whole()
    group, _, name = field.rpartition(".")
    holder = config[group] if group else config
    del holder[name]  # or ml_collections casts
    holder[name] = value
    return config


def assert_one_line(message, name):
    assert name in message
    assert message.isprintable()
    assert len(message) < 500


def test_there_are_hundreds_of_wrong_values():
    assert len(FIELDS) >= 42
    assert sum(len(wrong(field, WRONG, ANY)) for field in FIELDS) > 1000
    assert sum(len(wrong(field, WORDS)) for field in FIELDS) > 400


def test_the_values_that_are_there_are_right():
    for field, value in FIELDS.items():
        validate(with_value(field, value))


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_value_is_one_line_that_names_the_field(field):
    for value in wrong(field, WRONG, ANY):
        with pytest.raises(UserError) as caught:
            validate(with_value(field, value))
        assert_one_line(str(caught.value), field)


@pytest.fixture
def command_line(monkeypatch, capsys):
    """What main.py's own parser and the check of the config make of arguments."""
    given = []

    def run(*arguments):
        argv = ["main.py", *arguments]
        monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
        try:
            cli.parse(argv)
            validate(cli.CONFIG.value)
            given.append(flags.FLAGS["config"].override_values)
        except UserError as error:
            return str(error)
        except SystemExit as stop:
            output, line = capsys.readouterr()
            start, message, end = line[:7], line[7:-1], line[-1]
            if (stop.code, output, start, end) == (2, "", "error: ", "\n"):
                return message
            raise AssertionError(f"{stop.code} {output} {line}") from stop
        finally:
            for name in list(flags.FLAGS):
                if name.startswith("config."):
                    delattr(flags.FLAGS, name)
            for name in flags.FLAGS:
                flags.FLAGS[name].unparse()
        return None

    run.given = given
    return run


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_word_on_the_command_line_is_one_line_that_names_the_field(field, command_line):
    for word in wrong(field, WORDS):
        message = command_line("--config=configs/default.py:spherical", f"--config.{field}={word}")
        assert message is not None, word
        assert field in message
        assert message.isprintable()


def test_right_words_on_the_command_line_are_taken(command_line):
    for field, word in (
        ("seed", "4294967295"),
        ("model.stages", "16,32"),
        ("train.decay_epochs", "5"),
        ("train.decay_epochs", "()"),
        ("evaluate.metrics", "('knn',)"),
        ("method.mean_target", "-1"),
        ("loss.beta", "0"),
        ("data.flip", "true"),
        ("data.dir", ""),
    ):
        chosen = "--config=configs/default.py:spherical"
        assert command_line(chosen, f"--config.{field}={word}") is None


def test_what_counts_for_an_evaluation_is_what_was_typed(command_line, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("from configs.smoke import get_config")
    for arguments, given in (
        ([], {}),
        (
            ["--config.loss.beta=2", "--config.sample.count=9"],
            {"loss.beta": 2.0, "sample.count": 9},
        ),
        (["--config=smoke", "--config.seed=1"], {"seed": 1}),
        (["--config=~/mine.py"], {}),
    ):
        assert command_line(*arguments) is None
        assert command_line.given[-1] == given


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config.train.epochs"], "Missing value for flag --config.train.epochs"),
        (["--config"], "Missing value for flag --config"),
        (["--config=configs/nowhere.py"], "--config=configs/nowhere.py: no such file"),
        (["--config=configs/smoke.py:5"], "--config=configs/smoke.py:5: it ends with TypeError"),
        (["--config=configs/mnist.py:vq"], "'vq' is no method: choose one of standard, standard_"),
        (["--config=configs/nowhere.py:rae"], "--config=configs/nowhere.py:rae: no such file"),
        (
            ["--config.method.name=rae"],
            "method.decoder_variance is no field of rae, which has: decoder_weight;",
        ),
        (
            ["--config=configs/mnist.py:cartesian", "--config.method.name=standard_projected"],
            "method.spec is missing",
        ),
        (
            ["--config=configs/mnist.py", "--config.method.name=cartesian"],
            "method.decoder_variance is no field of cartesian, which has: none; another",
        ),
        (["--config.method.weight=1"], 'no such config field: "weight"'),
        (["--config=configs/smoke.py", "--config=configs/smoke.py"], "give one of them"),
        (["--config.loss.bta=1"], 'no such config field: bta Did you mean "beta"'),
        (["--config.los.beta=1"], 'no such config field: los Did you mean "loss"'),
        (["--config.model.latent_dim.x=1"], "no such config field"),
        (["--config.model.stages[0]=1"], "model.stages[0]"),
        (["--config.model=5"], "--config.model=5: Failed to parse"),
        (["--config.loss={'bta': 1}"], "no such config field: loss.bta"),
        (["--config.loss={'beta': 1}"], "loss.annealing is missing"),
        (["--config.model.stages=" + "-" * 5000 + "1"], "recursion"),
        (["--config.=5"], "Could not parse ''"),
        (["--config.a b=5"], "Could not parse 'a b'"),
        (["--config.seed=1", "--config=configs/smoke.py"], "--config.seed=1"),
        (["--noconfig.seed"], "noconfig.seed"),
        (["--mode="], "--mode=: value should be one of"),
        (["--mode=train,evaluate"], "--mode=train,evaluate: value should be one of"),
        (["--nomode"], "nomode"),
        (["--processes=two"], "--processes=two: invalid literal"),
        (["--process=0.5"], "--process=0.5: invalid literal"),
        (["--distributed=perhaps"], "--distributed=perhaps"),
        (["--workdir"], "Missing value for flag --workdir"),
        (["train"], "unexpected argument 'train'"),
        (["--", "--config.seed=1"], "unexpected argument '--config.seed=1'"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, text, command_line):
    message = command_line(*arguments)
    assert text in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (None, "no such file"),
        (b"", "needs a get_config() that returns a ConfigDict"),
        (b"get_config = None", "needs a get_config()"),
        (b"get_config = 5", "TypeError: 'int' object is not callable"),
        (b"def get_config(): pass", "needs a get_config()"),
        (b"def get_config(): return {'seed': 1}", "needs a get_config()"),
        (b"def get_config(x): return x", "TypeError"),
        (b"x = (", "it ends with SyntaxError: '(' was never closed"),
        (b"\x00", "it ends with SyntaxError: source code string cannot contain null bytes"),
        (b"x = '\xff'", "it ends with SyntaxError: (unicode error)"),
        (b"import nowhere", "line 1 ends with ModuleNotFoundError: No module named 'nowhere'"),
        (b"\n\nraise RuntimeError('a\\nb')", "line 3 ends with RuntimeError: a b"),
        (b"def get_config():\n  return 1 / 0", "line 2 ends with ZeroDivisionError"),
        (b"def get_config():\n  return open('/nowhere')", "line 2 ends with FileNotFoundError"),
        (b"def get_config(): return get_config()", "line 1 ends with RecursionError"),
        (b"import ml_collections as m\nget_config = m.ConfigDict", "seed is missing"),
        (
            b"from configs import default\ndef get_config():\n"
            b"  c = default.get_config()\n  c.loss.bta = 1.0\n  return c",
            "no such config field: loss.bta",
        ),
        (
            b"from configs import default\ndef get_config():\n"
            b"  c = default.get_config()\n  c.loss.beta = '1'\n  return c",
            "line 4 ends with TypeError: Could not override field 'beta'",
        ),
    ],
)
def test_a_config_file_that_is_none_is_one_line(source, text, tmp_path, command_line):
    path = tmp_path / "mine.py"
    if source is None:
        path.mkdir()
    else:
        path.write_bytes(source)
    message = command_line(f"--config={path}")
    assert text in message
    assert message.isprintable()
    if not text.endswith((" is missing", "loss.bta")):
        assert message.startswith(f"--config={path}")


def test_what_is_no_config_is_one_line():
    for value in (None, 5, {"seed": 0}, object(), "configs/default.py"):
        with pytest.raises(UserError, match="the config is of type"):
            validate(value)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_missing_is_named(field):
    config = whole()
    group, _, name = field.rpartition(".")
    del (config[group] if group else config)[name]
    with pytest.raises(UserError, match=f"^{field} is missing"):
        validate(config)


@pytest.mark.parametrize(
    "value",
    ["[]", "5", "null", '"x"', "{", "", "NaN", "[" * 10**5, '{"a":' * 400 + "1" + "}" * 400],
)
def test_a_config_json_that_is_none_is_one_line(value, tmp_path):
    (tmp_path / "config.json").write_text(value)
    with pytest.raises(UserError, match=r"config.json is damaged|of another config") as caught:
        check_workdir(default.get_config(), tmp_path)
    assert str(caught.value).isprintable()


def test_a_config_json_of_other_bytes_or_a_folder_is_one_line(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        check_workdir(default.get_config(), tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"config.json is damaged"):
        check_workdir(default.get_config(), tmp_path)


def test_a_workdir_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"workdir .* can't be written"), locked(path):
            pass


@pytest.mark.parametrize(
    "coordinator",
    [
        *("", ":", "host", "host:", ":80", "host:x", "host:-1", "host:0", "host:65536"),
        *("host:" + "9" * 99, "a b:80", "host:８0", "host:80 ", "host:80\n", "host:1e3"),
    ],
)
def test_a_coordinator_that_is_none_is_one_line(coordinator):
    with pytest.raises(UserError, match=r"write it as HOST:PORT"):
        devices.connect(coordinator, 2, 0)


@pytest.mark.parametrize(("processes", "process"), [(0, 0), (-1, 0), (2, 2), (2, -1), (2**40, 0)])
def test_processes_that_do_not_count_from_0_are_one_line(processes, process):
    with pytest.raises(UserError, match=f"--process={process} is none of --processes={processes}"):
        devices.connect("localhost:1234", processes, process)


@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"method.name"}))
def test_a_field_that_an_older_config_json_lacks_counts_as_its_default(field, tmp_path):
    config = whole()
    old = json.loads(json.dumps(config.to_dict()))
    group, _, name = field.rpartition(".")
    del (old[group] if group else old)[name]
    (tmp_path / "config.json").write_text(json.dumps(old))
    check_workdir(config, tmp_path)
    assert of_evaluation(tmp_path, {}).to_dict() == config.to_dict()
    if field == "method.std_radius":
        config.method.std_radius = 0.001
        with pytest.raises(UserError, match=r"std_radius is 0.001, there 1.0") as caught:
            check_workdir(config, tmp_path)
        assert "remove" not in str(caught.value)


def test_a_config_json_from_before_methods_is_understood(tmp_path):
    """Then a method was a kind of loss, and every kind had the fields of all."""
    for kind in ("spherical", "standard"):
        config = default.get_config(kind)
        config.method.spec = "published"
        old = json.loads(json.dumps(config.to_dict()))
        del old["method"]
        fields = {**whole().method.to_dict(), "spec": "published", "kind": kind}
        old["loss"] |= {name: value for name, value in fields.items() if name != "name"}
        (tmp_path / "config.json").write_text(json.dumps(old))
        check_workdir(config, tmp_path)
        assert of_evaluation(tmp_path, {}).to_dict() == config.to_dict()


def test_an_evaluation_takes_the_fields_of_the_workdir_but_for_some(tmp_path):
    trained = whole()
    trained.model.stages, trained.method.mean_target, trained.sample.count = (4,), 0.5, 77
    trained.evaluate.samplers = ("vmf",)
    (tmp_path / "config.json").write_text(json.dumps(trained.to_dict()))
    assert of_evaluation(tmp_path, {}).to_dict() == trained.to_dict()
    fields = {"evaluate.metrics": (), "data.name": "x.npz", "data.dir": "/data"}
    found = of_evaluation(tmp_path, fields | {"model.stages": (4,)})  # as it is
    assert (found.evaluate.metrics, found.data.name, found.data.dir) == ((), "x.npz", "/data")
    assert (found.evaluate.samplers, found.sample.count) == (("vmf",), 77)
    assert (found.model.stages, found.method.mean_target) == ((4,), 0.5)
    for fields, text in (
        ({"method.mean_target": 0.25}, "trained with method.mean_target=0.5, which stays: an eval"),
        ({"evaluate.metrics": (), "model.stages": (8,)}, "so leave out model.stages"),
        ({"train.epochs": 7}, "so leave out train.epochs"),
        ({"sample.cuont": 7}, "no such config field: sample.cuont"),
        ({"sample.count": 0}, "sample.count is 0: it must be"),
    ):
        with pytest.raises(UserError) as caught:
            of_evaluation(tmp_path, fields)
        assert text in str(caught.value)
        assert "remove" not in str(caught.value)
        assert "config.json" not in str(caught.value)


def test_a_config_json_that_cannot_be_evaluated_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no trained run: config.json is missing"):
        of_evaluation(tmp_path, {})
    for group, name, value, text in (
        (
            "loss",
            "gamma",
            1.0,
            "config.json: no such config field: loss.gamma (or use the version",
        ),
        ("loss", "beta", "x", "config.json: loss.beta is 'x'"),
    ):
        tree = default.get_config().to_dict()
        tree[group][name] = value
        (tmp_path / "config.json").write_text(json.dumps(tree))
        with pytest.raises(UserError) as caught:
            of_evaluation(tmp_path, {})
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "workdir",
    [
        *("gs://bucket/run", "s3://b/run", "file:///tmp/run", "gs:/bucket/run", "HTTPS://x"),
        *("~nobody-of-that-name/run", "a\0b", b"/tmp/\xff", "/tmp/\udcff"),
    ],
)
def test_a_workdir_that_is_no_folder_here_is_one_line(workdir):
    with pytest.raises(UserError, match=r"^workdir .* choose a") as caught:
        workdir_path(workdir)
    assert_one_line(str(caught.value), "workdir")


def test_paths_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir_path("~/runs/a") == tmp_path / "runs" / "a"
    assert workdir_path(Path("~")) == tmp_path
    assert workdir_path("a~b").name == "a~b"
