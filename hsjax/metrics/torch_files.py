"""PyTorch's files of tensors, read without PyTorch and without executing anything in them.

Such a file is a pickle that describes the tensors, and their bytes. The unpickler knows the few
names and opcodes of state dicts and plain data, and refuses any other.
"""

import io
import pickle
import zipfile
from types import NoneType
from typing import Any, ClassVar, NamedTuple

import numpy as np


class Unreadable(ValueError):
    """The bytes aren't complete plain tensors and data; the message says why in a few words.

    It may quote the file: print it with `ascii` or `repr`.
    """


def contents(data: bytes) -> Any:
    """All that torch.save wrote, in its present format or the one before 1.6.

    Args:
      data: the file's bytes; the tensors may have any layout.

    Returns:
      The tree of dicts, lists, tuples, texts, numbers, bools and None that was saved. Its tensors
      are arrays, read-only views of the file's bytes.

    Raises:
      Unreadable: on any other bytes, whatever they are: damaged, cut short, compressed, or a pickle
        that names or holds anything but those. There is no other exception.
    """
    try:
        read = _zip_contents if data.startswith(b"PK") else _legacy_contents
        return _plain(*read(data), len(data))
    except Exception as error:  # damaged bytes may provoke any
        raise Unreadable(str(error) or type(error).__name__) from error


def tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, as in `contents`; other entries are left out.

    Raises:
      Unreadable: as `contents` does, and if it is no dict.
    """
    tree = contents(data)
    if not isinstance(tree, dict):
        raise Unreadable("it is no dict")
    return {name: x for name, x in tree.items() if isinstance(x, np.ndarray)}


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    count: int  # type: ignore[assignment]  # shadows a method of tuples


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool = False
    hooks: Any = None


_NAMES: dict[str, Any] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor": _Tensor,  # before 0.4
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    "torch.BoolStorage": np.dtype("?"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
}

_PLAIN = [
    getattr(pickle, opcode)[0]
    for opcode in (
        "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
        "BINUNICODE SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND "
        "APPENDS EMPTY_DICT BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL "
        "REDUCE BINPERSID"
    ).split()
]


def _refuse(*_):
    raise ValueError("it holds more than tensors")


def _check_keys(keys: list) -> None:
    if not all(type(key) in (str, int) for key in keys):  # to hash pairs of pairs may take years
        raise ValueError("it names something by more than a word or a number")


class _Unpickler(pickle._Unpickler):  # in Python: the one in C reserves the memory a file asks for
    """Builds plain data and the placeholders above; calls only `_NAMES`."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        if f"{module}.{name}" not in _NAMES:
            raise ValueError(f"it names {module}.{name}: not only tensors")
        return _NAMES[f"{module}.{name}"]

    def persistent_load(self, description):
        kind, dtype, key, _, count, *view = description
        plain = isinstance(dtype, np.dtype) and type(key) is str
        if kind != "storage" or not plain or any(view):
            _refuse()
        return self.storages.setdefault(key, _Storage(dtype, key, count))

    def load_build(self):  # the _metadata of a state dict
        self.stack.pop()

    def load_setitem(self):
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        _check_keys(self.stack[::2])
        super().load_setitems()

    dispatch: ClassVar[dict[int, Any]] = dict.fromkeys(range(256), _refuse) | {
        **{code: pickle._Unpickler.dispatch[code] for code in _PLAIN},
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
    }


def _zip_contents(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """What torch.save writes since 1.6: a zip of data.pkl and a file per storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = archive.infolist()
        plain = all(file.compress_type == zipfile.ZIP_STORED for file in files)
        if not plain or sum(file.file_size for file in files) > len(data):
            raise ValueError("it is compressed")  # and may hold more than fits in memory
        folder = next((f.filename for f in files if f.filename.endswith("/data.pkl")), "")[:-8]
        unpickler = _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")))
        tree = unpickler.load()
        stored = {key: archive.read(f"{folder}data/{key}") for key in unpickler.storages}
    return tree, stored


def _legacy_contents(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """What torch.save wrote before 1.6: five pickles, then each storage's length and bytes."""
    file = io.BytesIO(data)
    magic, version, system = (_Unpickler(file).load() for _ in range(3))
    if (magic, version, system["little_endian"]) != (0x1950A86A20F9469CFC6C, 1001, True):
        raise ValueError("not a PyTorch file")
    unpickler = _Unpickler(file)
    tree, stored = unpickler.load(), {}
    if (keys := _Unpickler(file).load()) != sorted(unpickler.storages):
        raise ValueError("its list of storages is damaged")
    for key in keys:
        size = int.from_bytes(file.read(8), "little") * unpickler.storages[key].dtype.itemsize
        stored[key] = file.read(size)
    return tree, stored


def _plain(tree: Any, stored: dict[str, bytes], most: int) -> Any:
    """The tree with arrays, which are views of the bytes, in place of the placeholders.

    A part that is referred to repeatedly counts each time; more than `most` parts are refused.
    """
    left = iter(range(most))

    def part(x, name):
        if next(left, None) is None:
            raise ValueError("it holds more than the file")
        if isinstance(x, _Tensor):
            return _array(x, stored, name)
        if type(x) is dict:
            return {key: part(value, f"{name}{key}.") for key, value in x.items()}
        if type(x) in (list, tuple):
            return type(x)(part(value, f"{name}{i}.") for i, value in enumerate(x))
        if type(x) not in (NoneType, bool, int, float, str):
            _refuse()
        return x

    return part(tree, "")


def _array(tensor: _Tensor, stored: dict[str, bytes], name: str) -> np.ndarray:
    storage, offset, shape, strides, *_ = tensor
    if not isinstance(storage, _Storage):
        _refuse()
    flat = np.frombuffer(stored[storage.key], storage.dtype)
    end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    whole = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    if not whole or len(flat) != storage.count or end >= len(flat):
        raise ValueError(f"{name[:-1]} is cut short")
    in_bytes = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, in_bytes, writeable=False)
