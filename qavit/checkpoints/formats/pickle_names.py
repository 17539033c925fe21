"""The names that a pickle of torch.save may mention, and what each of them builds.

What is built is dicts, lists, tuples, sets, numbers, text, `StoredTensor`, and `Record`s of attributes. A name that is not
in these tables is refused, and nothing is ever looked up anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._weights import ITEM_SIZES, StoredTensor, UnreadTensor
from .special_tensors import quantised_tensor, sparse_tensor

#: Bounds on what a pickle may ask for.
MAX_PICKLE_BYTES = 64 << 20
MAX_DEPTH = 100
MAX_DIMS = 16
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
_TORCH_DTYPES = {
    **{name: name for name in ITEM_SIZES},
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}


class Record:
    """An object of a class that is known to be a plain holder of values: its name, and its attributes as a dict."""

    __slots__ = ("items", "name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: dict[str, Any] = {}
        self.items: list[Any] = []


class Global:
    """A name that a pickle mentions; only the interpreter knows what it stands for."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def is_count(value: object) -> bool:
    """Whether a value can be a number of items."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


class Storage:
    """A run of bytes in a file; ``fetch`` gives them when they are needed, as (buffer, offset)."""

    __slots__ = ("_found", "bytes", "dtype", "fetch", "swap")

    def __init__(self, dtype: str, size: int, fetch: Callable[[], tuple[Any, int]], swap: bool) -> None:
        self.dtype = dtype
        self.bytes = size
        self.fetch = fetch
        self.swap = swap
        self._found: tuple[Any, int] | None = None

    def buffer(self) -> tuple[Any, int]:
        """The bytes, and the offset of the storage's first."""
        if self._found is None:
            buffer, offset = self.fetch()
            width = ITEM_SIZES[self.dtype] // (2 if self.dtype.startswith("complex") else 1)
            if self.swap and width > 1:
                items = np.frombuffer(buffer, f"u{width}", self.bytes // width, offset)
                buffer, offset = items.byteswap(), 0
            self._found = (buffer, offset)
        return self._found


def _tensor(storage: Any, first: Any, shape: Any, strides: Any, dtype: str | None = None) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor whose storage is not a storage")
    shape, strides = tuple(shape), tuple(strides)
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        raise ValueError(f"a tensor with {len(shape)} sizes and {len(strides)} strides")
    if not all(is_count(number) for number in (first, *shape, *strides)):
        raise ValueError(
            f"a tensor of shape ({_numbers(shape)}), strides ({_numbers(strides)}) and offset {_numbers((first,))}: "
            "expected whole numbers from 0"
        )
    if dtype is not None and storage.swap and ITEM_SIZES[dtype] > 1:
        raise ValueError("an untyped storage in the other byte order")
    dtype = dtype or storage.dtype
    available = storage.bytes // ITEM_SIZES[dtype]
    if 0 not in shape:
        last = first + sum((size - 1) * stride for size, stride in zip(shape, strides))
        if last >= available:
            raise ValueError(f"a tensor of shape {shape} reaches item {last} of a storage of {available}")
        if math.prod(shape) > max(available, 1 << 20):
            raise ValueError(f"a tensor of shape {shape} repeats the {available} items of its storage")
    elif math.prod(size for size in shape if size) >= 1 << 62:
        raise ValueError(f"a tensor of shape {shape}: the sizes overflow")
    return StoredTensor(storage, dtype, shape, strides, first)


def _numbers(values: tuple[Any, ...]) -> str:
    """For messages: printing other values than numbers could take for ever, where containers share their parts."""
    return ", ".join(str(value) if isinstance(value, (int, float)) else type(value).__name__ for value in values)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    if len(arguments) < 4:
        raise ValueError("a tensor without storage, offset, size and stride")
    return _tensor(*arguments[:4])


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> StoredTensor | UnreadTensor:
    if len(arguments) < 7 or not isinstance(arguments[6], Global):
        raise ValueError("a tensor without storage, offset, size, stride and dtype")
    dtype = _TORCH_DTYPES.get(arguments[6].name.replace("torch.", "", 1))
    if dtype is None and arguments[6].name in NAMES:
        return UnreadTensor(f"a tensor of type {arguments[6].name}")
    if dtype is None:
        raise ValueError(f"a tensor of type {arguments[6].name}")
    return _tensor(arguments[0], arguments[1], arguments[2], arguments[3], dtype)


def _name_of(value: Any) -> str:
    return value.name if isinstance(value, Global) else ""


def _rebuild_quantised(arguments: tuple[Any, ...]) -> StoredTensor | UnreadTensor:
    if len(arguments) < 5:
        raise ValueError("a quantised tensor without storage, offset, size, stride and scale")
    return quantised_tensor(_tensor(*arguments[:4]), arguments[4], _name_of)


def _rebuild_sparse(arguments: tuple[Any, ...]) -> StoredTensor | UnreadTensor:
    if len(arguments) < 2:
        raise ValueError("a sparse tensor without its layout and data")
    return sparse_tensor(_name_of(arguments[0]) or arguments[0], arguments[1])


def _unread(what: str) -> Callable[[tuple[Any, ...]], UnreadTensor]:
    return lambda arguments: UnreadTensor(what)


def _counter(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    return dict(_one(arguments, (dict,), {}))


def _complex(arguments: tuple[Any, ...]) -> complex:
    if len(arguments) > 2 or not all(isinstance(part, (int, float)) for part in arguments):
        raise ValueError("a complex number that is not made of two numbers")
    return complex(*arguments)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> StoredTensor | UnreadTensor:
    if not arguments or not isinstance(arguments[0], (StoredTensor, UnreadTensor)):
        raise ValueError("a parameter that is not made of a tensor")
    return arguments[0]


def _rebuild_from_type(arguments: tuple[Any, ...]) -> Any:
    if len(arguments) < 3 or not isinstance(arguments[0], Global) or not isinstance(arguments[2], tuple):
        raise ValueError("a tensor subclass that is not made of a tensor")
    build = BUILDERS.get(arguments[0].name)
    if build not in (_rebuild_tensor, _rebuild_tensor_v3, _rebuild_parameter, _rebuild_quantised, _rebuild_sparse):
        raise ValueError(f"a tensor subclass made by {arguments[0].name}")
    return build(arguments[2])


def _pairs(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pair in _one(arguments, (list, tuple), ()):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("an ordered dict made of something that is not pairs")
        result[as_key(pair[0])] = pair[1]
    return result


def _one(arguments: tuple[Any, ...], kinds: tuple[type, ...], default: Any) -> Any:
    if not arguments:
        return default
    if len(arguments) != 1 or not isinstance(arguments[0], kinds):
        raise ValueError(f"expected one argument of {kinds[0].__name__}")
    return arguments[0]


def _encode(arguments: tuple[Any, ...]) -> bytes:
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise ValueError("bytes in an encoding that is not latin1")
    return arguments[0].encode("latin1")


def _numpy_dtype(arguments: tuple[Any, ...]) -> Record:
    code = arguments[0] if arguments else None
    if (
        not isinstance(code, str)
        or len(code) != 2
        or code not in {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u1", "b1"}
    ):
        raise ValueError(f"a NumPy number of type {code[:20] if isinstance(code, str) else type(code).__name__}")
    record = Record("numpy.dtype")
    record.items = [code]
    return record


def _numpy_scalar(arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2 or not isinstance(arguments[0], Record) or not isinstance(arguments[1], bytes):
        raise ValueError("a NumPy number without its type and bytes")
    dtype = np.dtype("<" + arguments[0].items[0])
    if len(arguments[1]) != dtype.itemsize:
        raise ValueError("a NumPy number of the wrong length")
    return np.frombuffer(arguments[1], dtype)[0].item()


def _text(arguments: tuple[Any, ...]) -> str:
    if not all(isinstance(part, str) for part in arguments):
        raise ValueError("a name that is not text")
    return "/".join(arguments)


BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": lambda arguments: tuple(_one(arguments, (list, tuple), ())),
    "torch.device": lambda arguments: ":".join(str(part) for part in arguments if isinstance(part, (str, int))),
    "torch.serialization._get_layout": lambda arguments: _one(arguments, (str,), ""),
    "torch.jit._pickle.restore_type_tag": lambda arguments: arguments[0] if arguments else None,
    "torch._utils._rebuild_qtensor": _rebuild_quantised,
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _unread("a sparse tensor of compressed rows"),
    "torch._utils._rebuild_nested_tensor": _unread("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unread("a tensor on the meta device, which has no items"),
    "torch._utils._rebuild_wrapper_subclass": _unread("a tensor subclass without a tensor in it"),
    "torch._utils._rebuild_device_tensor_from_numpy": _unread("a tensor made of a NumPy array"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _rebuild_parameter,
    "collections.Counter": _counter,
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": lambda arguments: {},  # its factory, if any, is a name
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
for _list in ("intlist", "doublelist", "boollist", "tensorlist"):
    BUILDERS["torch.jit._pickle.build_" + _list] = lambda arguments: list(_one(arguments, (list, tuple), ()))
for _module in ("builtins", "__builtin__"):
    BUILDERS[_module + ".set"] = lambda arguments: {as_key(item) for item in _one(arguments, (list, tuple), ())}
    BUILDERS[_module + ".frozenset"] = BUILDERS[_module + ".set"]
    BUILDERS[_module + ".list"] = lambda arguments: list(_one(arguments, (list, tuple), ()))
    BUILDERS[_module + ".tuple"] = lambda arguments: tuple(_one(arguments, (list, tuple), ()))
    BUILDERS[_module + ".dict"] = _pairs
    BUILDERS[_module + ".complex"] = _complex
    BUILDERS[_module + ".bytearray"] = lambda arguments: bytes(_one(arguments, (bytes,), b""))
for _class in ("PosixPath", "WindowsPath", "Path", "PurePosixPath", "PureWindowsPath"):
    BUILDERS["pathlib." + _class] = _text
    BUILDERS["pathlib._local." + _class] = _text
#: Classes whose objects become plain dicts of their attributes: what configurations in checkpoints are made of.
RECORDS = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")),
}
#: Modules of a TorchScript archive: what is below such a name is a dict of attributes. The program, in code/, is not read.
_SCRIPT = "__torch__."
_PLAIN_TYPES = ("int", "long", "float", "str", "unicode", "bool", "bytes", "dict", "list", "tuple", "set")
_TENSOR_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_QUANTISED = (
    "tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric", "channel_affine_float_qparams",
)  # fmt: skip
#: Names that may be mentioned and stand for nothing more.
NAMES = {
    "typing.Any",
    *(f"torch.{name}" for name in (*_TORCH_DTYPES, "strided", "contiguous_format", "preserve_format", "cfloat")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN_TYPES),
    *(f"torch.{name}" for name in STORAGES),
    *(f"torch.cuda.{name}" for name in STORAGES),
    *(f"torch.sparse.{kind}Tensor" for kind in _TENSOR_KINDS),
    *(f"torch.{place}{kind}Tensor" for kind in _TENSOR_KINDS for place in ("", "cuda.")),
    *(f"torch.{kind}int{bits}" for kind in ("", "u", "q", "qu") for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)),
    *(f"torch.per_{part}" for part in _QUANTISED),
    *(f"torch.{name}" for name in ("complex32", "chalf", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8", "bits2x4")),
    *(f"torch.float8_{form}" for form in ("e4m3fnuz", "e5m2fnuz", "e8m0fnu")),
    *(f"torch.sparse_{form}" for form in ("coo", "csr", "csc", "bsr", "bsc")),
    "torch.storage.UntypedStorage",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
}


def is_record(name: str) -> bool:
    """Whether objects of this class become plain dicts of their attributes."""
    return name in RECORDS or name.startswith(_SCRIPT)


def as_key(value: Any) -> Any:
    """A dict's or set's key: a plain value (hashing a deep tuple could exhaust the stack)."""
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    if isinstance(value, tuple) and len(value) <= 16 and all(isinstance(part, (str, int, float)) for part in value):
        return value
    if isinstance(value, Global) and value.name in NAMES:
        return value.name
    raise ValueError(f"a dict key of type {type(value).__name__}")
