"""PyTorch's files of tensors, read without PyTorch and without executing anything in them.

Such a file is a pickle that describes the tensors, and their bytes. The pickle is not loaded: a
small interpreter runs the few opcodes a state dict needs and knows the few names of `_NAMES`.
"""

import io
import pickletools
import zipfile
from typing import Any, NamedTuple

import numpy as np


class Unreadable(ValueError):
    """The bytes aren't a state dict of plain tensors, whole; the message says why in a few words.

    It may quote the file: print it with `ascii` or `repr`.
    """


def tensors(data: bytes) -> dict[str, np.ndarray]:
    """A state dict as torch.save wrote it, in its format of today or that before 1.6.

    Args:
      data: the file's bytes, float32 or int64 tensors of any layout in them.

    Returns:
      The tensors by name, read-only views of the file's bytes.

    Raises:
      Unreadable: on any other bytes, whatever they are: damaged, cut short, compressed, or a pickle
        that names or holds anything but tensors. There is no other exception.
    """
    try:
        return _zip_tensors(data) if data.startswith(b"PK") else _legacy_tensors(data)
    except Exception as error:  # damaged bytes may provoke any
        raise Unreadable(str(error) or type(error).__name__) from error


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


_NAMES = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor": _Tensor,  # before 0.4
    "torch._utils _rebuild_tensor_v2": _Tensor,
    "torch._utils _rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}


def _zip_tensors(data: bytes) -> dict[str, np.ndarray]:
    """What torch.save writes since 1.6: a zip of data.pkl and a file per storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = archive.infolist()
        stored = all(file.compress_type == zipfile.ZIP_STORED for file in files)
        if not stored or sum(file.file_size for file in files) > len(data):
            raise ValueError("it is compressed")  # and may hold more than fits in memory
        folder = next((f.filename for f in files if f.filename.endswith("/data.pkl")), "")[:-8]
        state = _interpret(io.BytesIO(archive.read(f"{folder}data.pkl")))
        keys = {tensor.storage.key for tensor in state.values()}
        return _arrays(state, {key: archive.read(f"{folder}data/{key}") for key in keys})


def _legacy_tensors(data: bytes) -> dict[str, np.ndarray]:
    """What it wrote before: five pickles, then each storage's length and bytes."""
    file = io.BytesIO(data)
    magic, version, system, state, keys = (_interpret(file) for _ in range(5))
    if (magic, version, system["little_endian"]) != (0x1950A86A20F9469CFC6C, 1001, True):
        raise ValueError("not a PyTorch file")
    sizes = {tensor.storage.key: tensor.storage.dtype.itemsize for tensor in state.values()}
    contents = {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little") * sizes[key]
        contents[key] = file.read(size)
    return _arrays(state, contents)


def _arrays(state: dict[str, _Tensor], contents: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Views of the bytes."""
    arrays = {}
    for name, (storage, offset, shape, strides, *_) in state.items():
        flat = np.frombuffer(contents[storage.key], storage.dtype)
        end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if len(flat) != storage.count or min((offset, *shape, *strides)) < 0 or end >= len(flat):
            raise ValueError(f"{name} is cut short")
        in_bytes = [stride * flat.itemsize for stride in strides]
        arrays[name] = np.lib.stride_tricks.as_strided(
            flat[offset:], shape, in_bytes, writeable=False
        )
    return arrays


def _interpret(file: io.BytesIO) -> Any:
    """One pickle, from where the file stands, as plain data and the stand-ins above.

    Every opcode is decoded by pickletools, which runs none. Here they build tuples, lists and
    dicts; a name that `_NAMES` lacks, or an opcode without a case, ends it.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def put(keys, values):
        if not all(type(key) is str for key in keys):  # to hash a tuple of tuples may take years
            raise ValueError("it names something by more than a string")
        stack[-1].update(zip(keys, values, strict=True))

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                put([key], [value])
            case "SETITEMS":
                items = since_mark()
                put(items[::2], items[1::2])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                if argument not in _NAMES:
                    raise ValueError(f"it names {argument.replace(' ', '.')}: not only tensors")
                stack.append(_NAMES[argument])
            case "REDUCE":  # nothing else on the stack can be called than those of _NAMES
                arguments, function = stack.pop(), stack.pop()
                stack.append(function(*arguments))
            case "BINPERSID":
                kind, dtype, key, _, count, *view = stack.pop()
                plain = isinstance(dtype, np.dtype) and type(key) is str
                if kind != "storage" or not plain or any(view):
                    raise ValueError("it holds more than tensors")
                stack.append(_Storage(dtype, key, count))
            case "BUILD":
                stack.pop()  # the _metadata of a state dict
            case _:
                raise ValueError(f"it holds more than tensors (opcode {opcode.name})")
    raise ValueError("it is cut short")
