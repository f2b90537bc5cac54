"""Files from elsewhere: what is no data is refused in one line, and nothing in it is executed."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import test_checkpoints
import test_data
from conftest import of_judgement
from PIL import EpsImagePlugin, Image

from configs import default
from hsjax import checkpoints, data, experiment, files
from hsjax.config import check_workdir, method_fields
from hsjax.errors import UserError
from hsjax.logs import Records, read_metrics
from hsjax.metrics import features, inception


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def npy(header, body=b""):
    """An .npy file with this text for its header."""
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def described(descr, shape="(3,)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def zipped(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_claimed_size(content, size):
    """A zip whose directory says of its first member that it unpacks to `size` bytes."""
    at = content.index(b"PK\x01\x02") + 24
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def pickles(marker):
    """Ways to have os.system called by whoever loads a pickle."""
    call = f"touch {marker}".encode()
    found = {f"protocol {p}": pickle.dumps(Evil(marker), p) for p in range(6)}
    return found | {
        "GLOBAL": b"cos\nsystem\n(S'" + call + b"'\ntR.",
        "INST": b"(S'" + call + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + call + b"'\no.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(S'touch'\nS'"
        + str(marker).encode()
        + b"'\nl\x85\x81.",
        "in a list": b"\x80\x02](cos\nsystem\nS'" + call + b"'\n\x85Re.",
        "in a dict": pickle.dumps({"key": Evil(marker)}),
        "in an array": pickle.dumps(np.array([Evil(marker)], object)),
    }


def arrays_files(marker):
    """Bytes that pretend to be an .npz of these names, and hide something else."""
    found = {f"a pickle, {name}": content for name, content in pickles(marker).items()}
    code = f"__import__('os').system('touch {marker}')"
    bodies = pickles(marker)
    members = {
        **{f"pickled, {name}": content for name, content in bodies.items()},
        "objects": npy(described("'|O'"), bodies["protocol 4"]),
        "objects in a structure": npy(described("[('a', '|O')]"), bodies["protocol 4"]),
        "code for a type": npy(described(code), bytes(3)),
        "code for a shape": npy(described("'|u1'", code), bytes(3)),
        "code for a header": npy(code, bytes(3)),
        "nested header": npy("(" * 5000, bytes(3)),
        "huge shape": npy(described("'|u1'", "(10**15,)"), bytes(3)),
        "a petabyte": npy(described("'|u1'", f"({10**15},)"), bytes(3)),
        "overflowing shape": npy(described("'|u1'", f"({2**62}, {2**62})"), bytes(3)),
        "negative shape": npy(described("'|u1'", "(-3,)"), bytes(3)),
        "more than it says": npy(described("'|u1'"), bytes(4)),
        "a longer header than there is": npy(described("'|u1'"))[:40],
        "a zip": zipped({"train_images.npy": b""}),
        "nothing": b"",
    }
    for name in data._ARRAYS:
        found |= {f"{name}: {how}": zipped({f"{name}.npy": x}) for how, x in members.items()}
    plain = npy(described("'|u1'"), bytes(3))
    one = zipped({"train_images.npy": plain})
    encrypted = bytearray(one)
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        encrypted[one.index(signature) + offset] |= 1
    bomb = zipped({"train_images.npy": plain + bytes(10**6)}, zipfile.ZIP_DEFLATED)
    found |= {
        "claims 4 GB": with_claimed_size(one, 2**32 - 2),
        "claims 1 byte": with_claimed_size(bomb, 1),
        "a deflated megabyte too many": bomb,
        "encrypted": bytes(encrypted),
        "unknown compression": one.replace(b"\x00\x00\x00\x00!\x00", b"\x63\x00\x00\x00!\x00"),
        "only paths": zipped({f"../{marker.name}": b"", f"{marker}": b"", "/../x/": b""}),
        "paths to arrays": zipped({f"../{name}.npy": plain for name in data._ARRAYS}),
    }
    return found


@pytest.fixture
def marker(tmp_path):
    """What a file that is executed would leave; and no other file may appear or vanish."""
    found = tmp_path / "folder" / "marker"
    found.parent.mkdir()
    assert pickle.loads(pickles(found)["protocol 2"]) == 0
    assert found.exists()  # as a pickle that is loaded does
    found.unlink()
    yield found
    assert not found.exists()
    assert list(found.parent.iterdir()) == []


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    return message


def test_images_from_elsewhere(marker, tmp_path):
    path = tmp_path / "images.npz"
    files = arrays_files(marker)
    assert len(files) > 100
    for content in files.values():
        path.write_bytes(content)
        assert str(path) in refused(data.load, str(path))
    assert {entry.name for entry in tmp_path.iterdir()} == {"folder", "images.npz"}


def test_decoded_images_from_elsewhere(marker, tmp_path, monkeypatch, caplog):
    """Each file of a kept set in turn, with the checksums and all else that tell it is whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    sets = tmp_path / "sets"
    test_data._prepare(sets / "tiny" / "1.0.0")
    expected = test_data._copy(data.load("tiny", str(sets)))
    folder = sets / "hsjax-tiny-1.0.0"
    whole = folder / "index.json"
    index = json.loads(whole.read_text())
    (sets / "elsewhere").write_bytes((folder / "train_images").read_bytes())
    about = index["arrays"]["train_images"]
    others = index["arrays"] | {"train_images": about | {"dtype": "O", "shape": [35]}}
    paths = {"../elsewhere": about, str(sets / "elsewhere"): about}
    indices = [
        json.dumps(index | {"arrays": others}).encode(),
        json.dumps(index | {"arrays": {"train_images": about | {"dtype": [["a", "O"]]}}}).encode(),
        *(json.dumps(index | {"arrays": {path: x}}).encode() for path, x in paths.items()),
        json.dumps(index | {"arrays": {"train_images": about | {"shape": [-1]}}}).encode(),
        json.dumps(index | {"arrays": {"train_images": about | {"shape": [10**15]}}}).encode(),
        *(b"[" * 10**5, b"null", b"[]", b"\xff"),
        *pickles(marker).values(),
    ]
    for content in indices:
        whole.write_bytes(content)
        caplog.clear()
        test_data._same(data.load("tiny", str(sets)), expected)
        assert "damaged or out of date" in caplog.text
    for content in pickles(marker).values():  # bytes are pixels
        labels = np.frombuffer(content[: len(content) // 4 * 4], np.int32)
        (folder / "train_labels").write_bytes(labels.tobytes())
        crc = zlib.crc32(labels.tobytes())
        of_labels = {"shape": [len(labels)], "dtype": "int32", "crc32": crc}
        changed = index | {"arrays": index["arrays"] | {"train_labels": of_labels}}
        whole.write_text(json.dumps(changed))
        with contextlib.suppress(UserError):  # not as many labels as images
            assert len(data.load("tiny", str(sets)).train_images) == 7


@pytest.fixture
def script(marker, tmp_path, monkeypatch):
    """PostScript, which Pillow hands to Ghostscript: here, a program that leaves the marker."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {marker}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with contextlib.suppress(OSError):  # the program draws nothing
        Image.open(io.BytesIO(content)).load()
    assert marker.exists()
    marker.unlink()
    return content


def test_records_from_elsewhere(script, tmp_path, monkeypatch):
    monkeypatch.setattr(test_data, "_png", lambda image: script)
    test_data._prepare(tmp_path / "sets" / "tiny" / "1.0.0")
    assert "10 of the 10 images" in refused(data.load, "tiny", str(tmp_path / "sets"))


def test_folders_of_images_from_elsewhere(script, marker, tmp_path):
    folder, bomb = tmp_path / "images", io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 4), i).save(folder / split / f"{i}.png")
    assert data.load(f"{folder}/").train_images.shape == (3, 4, 4, 1)
    for content in (script, *pickles(marker).values(), zipped({"0.png": b""}), bomb.getvalue()):
        for name in ("0.png", "2.png"):
            before = (folder / "train" / name).read_bytes()
            (folder / "train" / name).write_bytes(content)
            assert name in refused(data.load, f"{folder}/")
            (folder / "train" / name).write_bytes(before)


def test_feature_networks_from_elsewhere(marker, tmp_path):
    path = tmp_path / "classifier.npz"
    parameters = features._initial((8, 8, 1), 3, 0)
    whole = {"key": np.array("k"), "accuracy": np.array(0.5), **parameters}
    np.savez(path, **whole)
    assert features._read(path, "k") is not None
    contents = [*arrays_files(marker).values()]
    for name in whole:
        for body in pickles(marker).values():
            file = io.BytesIO()
            np.savez(file, **{key: x for key, x in whole.items() if key != name})
            with zipfile.ZipFile(file, "a") as archive:
                archive.writestr(f"{name}.npy", npy(described("'|O'", "()"), body))
            contents.append(file.getvalue())
    for content in contents:
        path.write_bytes(content)
        assert features._read(path, "k") is None


def test_inception_weights_from_elsewhere(marker, tmp_path):
    path = tmp_path / "weights.pth"
    evil = pickles(marker)
    # Pairs of the one before: the last has 2⁶⁰ leaves, all of which hash and repr would visit.
    pairs = b")q\x01" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(1, 61))
    contents = {
        **evil,
        **{f"zip, {name}": zipped({"archive/data.pkl": body}) for name, body in evil.items()},
        **{
            f"after the magic, {name}": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + body
            for name, body in evil.items()
        },
        "EXT1": b"\x80\x02\x82\x01.",
        "persistent id": b"Pos.system\n.",
        "a class of torch": b"\x80\x02ctorch\nload\n)R.",
        "an attribute of a name": b"\x80\x04\x8c\x05torch\x8c\x04hub.\x93.",
        "state for a name": b"\x80\x02ccollections\nOrderedDict\n}b.",
        "a name called with names": b"\x80\x02ctorch._utils\n_rebuild_parameter\n"
        b"(ccollections\nOrderedDict\nh\x00NtR.",
        "lists in lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        "pairs of pairs": b"\x80\x02" + pairs + b".",
        "pairs for a key": b"\x80\x02}q\x00" + pairs + b"h\x00h\x3dNs.",
        "pairs for keys": b"\x80\x02}q\x00" + pairs + b"h\x00(h\x3dNu.",
        "pairs for a storage": b"\x80\x02"
        + pairs
        + b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nh\x3dNK\x01tQ.",
        "pairs for a list of storages": b"".join(
            pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})
        )
        + b"\x80\x02]q\x00"
        + pairs
        + b"h\x00h\x3da.",
        "a memo of 34 GB": b"\x80\x02]r\xff\xff\xff\x7f.",
        "an array of a terabyte": b"\x80\x05\x96" + struct.pack("<Q", 2**40),
        "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "no end": b"\x80\x02",
        "paths": zipped({"../archive/data.pkl": b"\x80\x02}.", f"{marker}": b""}),
        "a claim": with_claimed_size(zipped({"archive/data.pkl": evil["protocol 2"]}), 2**31),
        "a bomb": zipped({"archive/data.pkl": bytes(10**6)}, zipfile.ZIP_DEFLATED),
        "nothing": b"",
        "an .npz": zipped({"train_images.npy": npy(described("'|u1'"), bytes(3))}),
    }
    assert len(contents) > 50
    for content in contents.values():
        path.write_bytes(content)
        assert str(path) in refused(inception.read, path, "")
    assert {entry.name for entry in tmp_path.iterdir()} == {"folder", "weights.pth"}


RESTORE = """if True:
    import json, sys
    from pathlib import Path
    from test_checkpoints import assert_same, tree
    from hsjax.checkpoints import Checkpoints
    from hsjax.errors import UserError

    found = {}
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        try:
            with Checkpoints(folder, keep=1) as kept:
                state = kept.restore(tree(0.0))
        except UserError as error:
            found[folder.name] = str(error)
        else:
            if state is not None:
                assert_same(state, tree(7.0))
            found[folder.name] = "nothing" if state is None else "the state"
    print(json.dumps(found))
"""


def test_checkpoints_from_elsewhere(marker, tmp_path):
    """Every file in turn is a pickle, and the hashes are made to match.

    In a process of its own: when orbax fails, it leaves tasks behind.
    """
    saved = tmp_path / "saved"
    with checkpoints.Checkpoints(saved, keep=1) as kept:
        kept.save(7, test_checkpoints.tree(7.0))
    names = [f.relative_to(saved) for f in saved.rglob("*") if f.is_file()]
    assert len(names) > 10
    for i, name in enumerate(names):
        for kind, content in pickles(marker).items():
            folder = tmp_path / "forged" / f"{i} {name.name} {kind}"
            shutil.copytree(saved, folder)
            (folder / name).write_bytes(content)
            if name.name != checkpoints._SUMS:
                sums = json.dumps(checkpoints._sums(folder / "7"))
                (folder / "7" / checkpoints._SUMS).write_text(sums)
    done = subprocess.run(
        [sys.executable, "-c", RESTORE, str(tmp_path / "forged")],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert len(found) == len(names) * len(pickles(marker))
    for name, outcome in found.items():
        assert outcome.isprintable()
        if checkpoints._SUMS in name:
            assert outcome == "nothing"
        else:  # or orbax doesn't read that file
            assert "can't be read" in outcome or outcome == "the state"
    assert sum("can't be read" in outcome for outcome in found.values()) > 40


def test_configs_and_metrics_from_elsewhere(marker, tmp_path):
    config = default.get_config()
    for content in (*pickles(marker).values(), b"\xff", b"null", b"[1]", b"[" * 10**5):
        (tmp_path / "config.json").write_bytes(content)
        assert "config.json is damaged" in refused(check_workdir, config, tmp_path)
    (tmp_path / "config.json").unlink()

    good = b'{"epoch": 1, "step": 6, "loss": 2.0, "mse": 1.5}\n'
    rows = [json.loads(good)]
    bad = (
        *(b"\xff\n", b"null\n", b"[1]\n", b"5\n", b"{}\n", b'{"epoch": 2}\n', b"[" * 10**5),
        *(good.replace(b"1.5", wrong) for wrong in (b'"x"', b"[1]", b"null", b"true", b"{}")),
        b'{"epoch": 2, "lo',
    )
    for content in (*pickles(marker).values(), *bad):
        (tmp_path / "metrics.jsonl").write_bytes(good + content)
        assert read_metrics(tmp_path) == rows


# Links in a workdir from elsewhere.

FILES = (
    "config.json data.json parameters.txt metrics.jsonl metrics.json embeddings.npz .lock "
    "metrics.jsonl-damaged-1"
).split()
FOLDERS = (
    "checkpoints checkpoints-damaged figures tensorboard .finished .unfinished .replaced .x.tmp"
).split()


@pytest.fixture
def documents(tmp_path):
    """A user's folder, which must stay as it is."""
    folder = tmp_path / "documents"
    (folder / "80").mkdir(parents=True)
    for name in ("thesis.txt", "80/thesis.txt"):
        (folder / name).write_text("years of work")
    before = {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    yield folder
    assert before == {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    assert (folder / "thesis.txt").read_text() == "years of work"


def small(config):
    config.method, config.model.stages = method_fields("standard"), (2,)
    config.train.epochs, config.evaluate.features = 1, "none"
    config.evaluate.metrics = config.evaluate.samplers = ()
    return config


@pytest.mark.parametrize("target", ["documents", "nowhere"])
def test_links_in_a_workdir_are_replaced(config, documents, tmp_path, monkeypatch, target):
    def draw(folder, *_):
        folder.mkdir()
        (folder / "summary.png").write_text("new")

    monkeypatch.setattr(experiment, "_draw", draw)
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in (*FILES, *FOLDERS):
        (workdir / name).symlink_to(tmp_path / target / ("thesis.txt" if name in FILES else ""))
    numbers = experiment.train_and_evaluate(small(config), workdir)
    shutil.rmtree(workdir / "figures")
    for name in FOLDERS[1:]:
        if not (workdir / name).exists():
            (workdir / name).unlink(missing_ok=True)
            (workdir / name).symlink_to(tmp_path / target)
    for _ in range(2):
        assert experiment.evaluate(workdir, of_judgement(config)) == numbers
    assert (workdir / "figures" / "summary.png").read_text() == "new"
    names = {path.name for path in workdir.iterdir() if not path.is_symlink()}
    assert {"checkpoints", "figures", "tensorboard", *FILES[:6]} <= names
    left = {path.name for path in workdir.iterdir() if path.is_symlink()}
    assert left <= {
        "checkpoints-damaged",
        "metrics.jsonl-damaged-1",
    }  # which nothing was written to
    assert not (tmp_path / "nowhere").exists()


def test_files_and_folders_change_places_without_a_stop(tmp_path):
    """Whatever is where results go, they get there."""
    for kind in ("file", "folder", "link"):
        workdir = tmp_path / kind
        for name in ("figures", "metrics.json", ".replaced", ".unfinished", ".x.tmp", ".finished"):
            (workdir / name).parent.mkdir(exist_ok=True)
            if kind == "file" or (kind == "link" and name == "metrics.json"):
                (workdir / name).write_text("x")
            elif kind == "folder":
                (workdir / name / "x").mkdir(parents=True)
            else:
                (workdir / name).symlink_to("nowhere")
        for text in "ab":
            with files.replaced_together(workdir) as new:
                (new / "figures").mkdir()
                (new / "figures" / "a.png").write_text(text)
                (new / "metrics.json").write_text(text)
            found = {path.name for path in workdir.iterdir()} - {"x"}
            assert found == {"figures", "metrics.json"}
            assert (workdir / "metrics.json").read_text() == text
            assert [path.read_text() for path in (workdir / "figures").iterdir()] == [text]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "data.json"])
def test_links_to_what_never_ends_are_not_read(config, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "pipe")
    check_workdir(config, tmp_path / "run")
    assert read_metrics(tmp_path / "run") == []
    experiment._check_data(tmp_path / "run", {})


def test_a_workdir_may_be_a_link_of_the_users(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large")
    with files.locked(tmp_path / "run"):
        assert os.listdir(tmp_path / "large") == [".lock"]


def test_tensorboard_may_be_a_link_to_where_its_files_are_kept(tmp_path, caplog):
    (tmp_path / "events").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "events")
    for _ in range(2):
        Records(tmp_path / "run", 0, 0).__exit__()
    assert len(os.listdir(tmp_path / "events")) == 2
    assert not caplog.text
