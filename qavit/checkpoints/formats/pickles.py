"""Pickles of torch.save, read by an interpreter that can build tensors and plain containers and nothing else.

No class is looked up and no function of the file's choosing is called: names that a pickle mentions are looked up in
the tables below, and a name that is not there is refused. What is built is dicts, lists, tuples, sets, numbers, text,
and `StoredTensor`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from .._weights import ITEM_SIZES, StoredTensor

#: Bounds on what a pickle may ask for.
MAX_PICKLE_BYTES = 64 << 20
MAX_DEPTH = 100
MAX_DIMS = 16
_STORAGES = {
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


class _Global:
    """A name that a pickle mentions; only the interpreter knows what it stands for."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Mark:
    __slots__ = ()
_MARK = _Mark()


def is_count(value: object) -> bool:
    """Whether a value can be a number of items."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


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


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> StoredTensor:
    if len(arguments) < 7 or not isinstance(arguments[6], _Global):
        raise ValueError("a tensor without storage, offset, size, stride and dtype")
    dtype = _TORCH_DTYPES.get(arguments[6].name.replace("torch.", "", 1))
    if dtype is None:
        raise ValueError(f"a tensor of type {arguments[6].name}")
    return _tensor(arguments[0], arguments[1], arguments[2], arguments[3], dtype)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    if not arguments or not isinstance(arguments[0], StoredTensor):
        raise ValueError("a parameter that is not made of a tensor")
    return arguments[0]


def _rebuild_from_type(arguments: tuple[Any, ...]) -> Any:
    if len(arguments) < 3 or not isinstance(arguments[0], _Global) or not isinstance(arguments[2], tuple):
        raise ValueError("a tensor subclass that is not made of a tensor")
    build = _BUILDERS.get(arguments[0].name)
    if build not in (_rebuild_tensor, _rebuild_tensor_v3, _rebuild_parameter):
        raise ValueError(f"a tensor subclass made by {arguments[0].name}")
    return build(arguments[2])


def _pairs(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pair in _one(arguments, (list, tuple), ()):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("an ordered dict made of something that is not pairs")
        result[_key(pair[0])] = pair[1]
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
_BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": lambda arguments: tuple(_one(arguments, (list, tuple), ())),
    "torch.device": lambda arguments: ":".join(str(part) for part in arguments if isinstance(part, (str, int))),
    "torch.serialization._get_layout": lambda arguments: _one(arguments, (str,), ""),
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": lambda arguments: {},  # its factory, if any, is a name
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
for _module in ("builtins", "__builtin__"):
    _BUILDERS[_module + ".set"] = lambda arguments: {_key(item) for item in _one(arguments, (list, tuple), ())}
    _BUILDERS[_module + ".frozenset"] = _BUILDERS[_module + ".set"]
    _BUILDERS[_module + ".list"] = lambda arguments: list(_one(arguments, (list, tuple), ()))
    _BUILDERS[_module + ".tuple"] = lambda arguments: tuple(_one(arguments, (list, tuple), ()))
    _BUILDERS[_module + ".dict"] = _pairs
    _BUILDERS[_module + ".bytearray"] = lambda arguments: bytes(_one(arguments, (bytes,), b""))
for _class in ("PosixPath", "WindowsPath", "Path", "PurePosixPath", "PureWindowsPath"):
    _BUILDERS["pathlib." + _class] = _text
    _BUILDERS["pathlib._local." + _class] = _text
#: Classes whose objects become plain dicts of their attributes: what configurations in checkpoints are made of.
_RECORDS = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")),
}
_PLAIN_TYPES = ("int", "long", "float", "str", "unicode", "bool", "bytes", "dict", "list", "tuple", "set")
#: Names that may be mentioned and stand for nothing more.
_NAMES = {
    "typing.Any",
    *(f"torch.{name}" for name in (*_TORCH_DTYPES, "strided", "contiguous_format", "preserve_format", "cfloat")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN_TYPES),
    *(f"torch.{name}" for name in _STORAGES),
    *(f"torch.cuda.{name}" for name in _STORAGES),
    "torch.storage.UntypedStorage",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
}


def _key(value: Any) -> Any:
    """A dict's or set's key: a plain value (hashing a deep tuple could exhaust the stack)."""
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    if isinstance(value, tuple) and len(value) <= 16 and all(isinstance(part, (str, int, float)) for part in value):
        return value
    if isinstance(value, _Global) and value.name in _NAMES:
        return value.name
    raise ValueError(f"a dict key of type {type(value).__name__}")


class _Interpreter:
    """Reads one pickle from ``data`` at ``position``; afterwards ``position`` is just behind it."""

    def __init__(self, data: Any, position: int, end: int, find_storage: Callable[[Any], Any]) -> None:
        self.data = data
        self.position = position
        self.end = min(end, position + MAX_PICKLE_BYTES)
        self.find_storage = find_storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        operations = _OPERATIONS
        while True:
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                if len(self.stack) != 1 or self.stack[0] is _MARK:
                    raise ValueError("the pickle ends with something left over")
                return self.stack[0]
            operation = operations.get(code)
            if operation is None:
                raise ValueError(f"the pickle uses the operation {code:#04x}, which no file of torch.save needs")
            operation(self)

    # Bytes.

    def take(self, count: int) -> bytes:
        start = self.position
        if count < 0 or count > self.end - start:
            raise ValueError("the pickle is cut short, or longer than is expected")
        self.position = start + count
        return bytes(self.data[start : start + count])

    def line(self) -> str:
        newline = self.data.find(b"\n", self.position, min(self.end, self.position + 4096))
        if newline < 0:
            raise ValueError("the pickle is cut short in a line")
        text = self.take(newline - self.position).decode("utf-8")
        self.position += 1
        return text

    def size(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    # The stack.

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the pickle takes more values than it has")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        stack = self.stack
        for start in range(len(stack) - 1, -1, -1):
            if stack[start] is _MARK:
                items = stack[start + 1 :]
                del stack[start:]
                return items
        raise ValueError("the pickle closes a list that it did not open")

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the pickle takes more values than it has")
        return self.stack[-1]

    def remember(self, slot: int) -> None:
        self.memo[slot] = self.top()

    def recall(self, slot: int) -> None:
        if slot not in self.memo:
            raise ValueError("the pickle names a value that it has not made")
        self.stack.append(self.memo[slot])

    # Containers.

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target = target.items
        if not isinstance(target, list):
            raise ValueError(f"items for something that is not a list: {_kind(target)}")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2 or not isinstance(target, dict):
            raise ValueError(f"entries for something that is not a dict: {_kind(target)}")
        for key, value in zip(items[::2], items[1::2]):
            target[_key(key)] = value

    def add(self) -> None:
        items = self.pop_mark()
        target = self.top()
        if not isinstance(target, set):
            raise ValueError(f"items for something that is not a set: {_kind(target)}")
        target.update(_key(item) for item in items)

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.update(items)

    # Names and what they build.

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        full = f"{module}.{name}"
        if full not in _BUILDERS and full not in _RECORDS and full not in _NAMES:
            raise ValueError(
                f"it asks for {full[:200]}, which is neither a tensor nor a plain container: refused, nothing was run"
            )
        self.stack.append(_Global(full))

    def stack_name(self) -> None:
        name = self.pop()
        self.name(self.pop(), name)

    def call(self, new: bool = False) -> None:
        arguments = self.pop()
        function = self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is not a name")
        build = _BUILDERS.get(function.name)
        if build is not None:
            self.stack.append(build(arguments))
        elif function.name in _RECORDS and not arguments:
            self.stack.append(Record(function.name))
        else:
            raise ValueError(f"a call of {function.name}")

    def call_with_names(self) -> None:
        if self.pop() != {}:
            raise ValueError("a call with named arguments")
        self.call()

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Record):
            if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
                state = {**(state[0] or {}), **state[1]} if isinstance(state[0], (dict, type(None))) else None
            if target.name != "numpy.dtype":
                if not isinstance(state, dict):
                    raise ValueError(f"{target.name} without a dict of attributes")
                target.state = state
        elif not isinstance(target, (StoredTensor, dict)):
            raise ValueError(f"attributes for {_kind(target)}")
        # The attributes of a tensor or of an ordered dict (torch puts a state dict's _metadata there) are not needed.

    def persistent(self, identity: Any) -> None:
        self.stack.append(self.find_storage(identity))


def _kind(value: Any) -> str:
    return value.name if isinstance(value, (_Global, Record)) else type(value).__name__


def _long(machine: _Interpreter, width: int) -> int:
    count = machine.size(width)
    if count > 255:
        raise ValueError("a number of more than 255 bytes")
    return int.from_bytes(machine.take(count), "little", signed=True)


def _tuple(machine: _Interpreter, count: int) -> None:
    items = [machine.pop() for _ in range(count)]
    machine.stack.append(tuple(reversed(items)))


def _operations() -> dict[int, Callable[[_Interpreter], Any]]:
    """The pickle operations that are known, by their byte."""

    def push(make: Callable[[_Interpreter], Any]) -> Callable[[_Interpreter], Any]:
        return lambda machine: machine.stack.append(make(machine))

    def text(width: int) -> Callable[[_Interpreter], Any]:
        return push(lambda machine: machine.take(machine.size(width)).decode("utf-8"))

    def data(width: int) -> Callable[[_Interpreter], Any]:
        return push(lambda machine: machine.take(machine.size(width)))

    def old_text(width: int) -> Callable[[_Interpreter], Any]:
        return push(lambda machine: machine.take(machine.size(width)).decode("latin1"))

    named: dict[str, Callable[[_Interpreter], Any]] = {
        "\x80": lambda machine: machine.take(1),  # PROTO
        "\x95": lambda machine: machine.take(8),  # FRAME
        "(": push(lambda machine: _MARK),
        "0": lambda machine: machine.stack.pop() if machine.stack else machine.pop(),
        "1": lambda machine: machine.pop_mark(),
        "2": push(lambda machine: machine.top()),  # DUP
        "N": push(lambda machine: None),
        "\x88": push(lambda machine: True),
        "\x89": push(lambda machine: False),
        "J": push(lambda machine: int.from_bytes(machine.take(4), "little", signed=True)),
        "K": push(lambda machine: machine.size(1)),
        "M": push(lambda machine: machine.size(2)),
        "\x8a": push(lambda machine: _long(machine, 1)),
        "\x8b": push(lambda machine: _long(machine, 4)),
        "G": push(lambda machine: struct.unpack(">d", machine.take(8))[0]),
        "T": old_text(4),
        "U": old_text(1),
        "X": text(4),
        "\x8c": text(1),
        "\x8d": text(8),
        "B": data(4),
        "C": data(1),
        "\x8e": data(8),
        "\x96": data(8),  # BYTEARRAY8
        "]": push(lambda machine: []),
        "}": push(lambda machine: {}),
        ")": push(lambda machine: ()),
        "\x8f": push(lambda machine: set()),
        "a": lambda machine: machine.extend([machine.pop()]),
        "e": lambda machine: machine.extend(machine.pop_mark()),
        "l": push(lambda machine: machine.pop_mark()),
        "d": lambda machine: machine.make_dict(),
        "s": lambda machine: machine.update([machine.pop(), machine.pop()][::-1]),
        "u": lambda machine: machine.update(machine.pop_mark()),
        "\x90": lambda machine: machine.add(),
        "\x91": push(lambda machine: {_key(item) for item in machine.pop_mark()}),
        "t": push(lambda machine: tuple(machine.pop_mark())),
        "\x85": lambda machine: _tuple(machine, 1),
        "\x86": lambda machine: _tuple(machine, 2),
        "\x87": lambda machine: _tuple(machine, 3),
        "c": lambda machine: machine.name(machine.line(), machine.line()),
        "\x93": lambda machine: machine.stack_name(),
        "R": lambda machine: machine.call(),
        "\x81": lambda machine: machine.call(),  # NEWOBJ
        "\x92": lambda machine: machine.call_with_names(),  # NEWOBJ_EX
        "b": lambda machine: machine.build(),
        "q": lambda machine: machine.remember(machine.size(1)),
        "r": lambda machine: machine.remember(machine.size(4)),
        "\x94": lambda machine: machine.remember(len(machine.memo)),
        "h": lambda machine: machine.recall(machine.size(1)),
        "j": lambda machine: machine.recall(machine.size(4)),
        "Q": lambda machine: machine.persistent(machine.pop()),
    }
    return {ord(code): operation for code, operation in named.items()}
_OPERATIONS = _operations()


def plain(root: Any) -> Any:
    """The value with records as plain containers; refuses nesting deeper than ``MAX_DEPTH``.

    A container that is met twice is converted once, so that a small pickle cannot stand for a huge tree.
    """
    done: dict[int, Any] = {}
    open_: set[int] = set()

    def convert(value: Any, depth: int) -> Any:
        if isinstance(value, _Global):
            return value.name
        if not isinstance(value, (dict, list, tuple, Record)):
            return value
        if depth > MAX_DEPTH:
            raise ValueError(f"containers nested more than {MAX_DEPTH} deep")
        identity = id(value)
        if identity in done:
            return done[identity]
        if identity in open_:
            raise ValueError("a container that holds itself")
        open_.add(identity)
        result: Any
        if isinstance(value, dict):
            result = {key: convert(item, depth + 1) for key, item in value.items()}
        elif isinstance(value, list):
            result = [convert(item, depth + 1) for item in value]
        elif isinstance(value, tuple):
            result = tuple(convert(item, depth + 1) for item in value)
        else:
            result = convert(_content(value), depth + 1)
        open_.discard(identity)
        done[identity] = result
        return result

    return convert(root, 0)


def _content(record: Record) -> Any:
    if record.name.startswith("omegaconf.nodes."):
        return record.state.get("_val")
    if record.name.startswith("omegaconf.base."):
        return None
    if record.name.startswith("omegaconf."):
        return record.state.get("_content")
    return record.state


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


def storage_dtype(kind: Any) -> str:
    """The dtype of a storage class that a pickle names."""
    name = _kind(kind)
    dtype = _STORAGES.get(name.rsplit(".", 1)[-1]) if isinstance(kind, _Global) else None
    if dtype is None:
        raise ValueError(f"a storage of type {name[:80]}")
    return dtype


def storage_identity(identity: Any, least: int) -> tuple[Any, ...]:
    """A pickle's name for a storage: ('storage', class, key, place, items, ...), checked."""
    if not isinstance(identity, tuple) or len(identity) < least or identity[0] != "storage":
        raise ValueError("a storage without type, name and size")
    if not isinstance(identity[2], (str, int)) or not is_count(identity[4]):
        raise ValueError("a storage whose name or size is not one")
    return identity


def read_pickle(data: Any, position: int, end: int, find_storage: Callable[[Any], Any]) -> tuple[Any, int]:
    """The value of the pickle at ``position``, and where it ends.

    Parameters
    ----------
    data : bytes or memory map
    position, end : int
        It must end before ``end``, and within ``MAX_PICKLE_BYTES``.
    find_storage : callable
        Given what the pickle calls a storage, returns a `Storage` or raises ValueError.
    """
    machine = _Interpreter(data, position, end, find_storage)
    return machine.load(), machine.position
