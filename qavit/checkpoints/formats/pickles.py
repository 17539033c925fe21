"""Pickles of torch.save, read by an interpreter that can build tensors and plain containers and nothing else.

No class is looked up and no function of the file's choosing is called: names that a pickle mentions are looked up in
the tables of `pickle_names`, and a name that is not there is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from .._weights import StoredTensor, UnreadTensor
from .pickle_names import (
    BUILDERS,
    MAX_DEPTH,
    MAX_PICKLE_BYTES,
    NAMES,
    STORAGES,
    Global,
    Record,
    as_key,
    is_count,
    is_record,
)


class _Mark:
    __slots__ = ()


_MARK = _Mark()


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
            target[as_key(key)] = value

    def add(self) -> None:
        items = self.pop_mark()
        target = self.top()
        if not isinstance(target, set):
            raise ValueError(f"items for something that is not a set: {_kind(target)}")
        target.update(as_key(item) for item in items)

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.update(items)

    # Names and what they build.

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        full = f"{module}.{name}"
        if full not in BUILDERS and full not in NAMES and not is_record(full):
            raise ValueError(
                f"it asks for {full[:200]}, which is neither a tensor nor a plain container: refused, nothing was run"
            )
        self.stack.append(Global(full))

    def stack_name(self) -> None:
        name = self.pop()
        self.name(self.pop(), name)

    def call(self, new: bool = False) -> None:
        arguments = self.pop()
        function = self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is not a name")
        build = BUILDERS.get(function.name)
        if build is not None:
            self.stack.append(build(arguments))
        elif is_record(function.name) and not arguments:
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
        elif not isinstance(target, (StoredTensor, UnreadTensor, dict)):
            raise ValueError(f"attributes for {_kind(target)}")
        # The attributes of a tensor or of an ordered dict (torch puts a state dict's _metadata there) are not needed.

    def persistent(self, identity: Any) -> None:
        self.stack.append(self.find_storage(identity))


def _kind(value: Any) -> str:
    return value.name if isinstance(value, (Global, Record)) else type(value).__name__


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
        "\x91": push(lambda machine: {as_key(item) for item in machine.pop_mark()}),
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
        if isinstance(value, Global):
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


def storage_dtype(kind: Any) -> str:
    """The dtype of a storage class that a pickle names."""
    name = _kind(kind)
    dtype = STORAGES.get(name.rsplit(".", 1)[-1]) if isinstance(kind, Global) else None
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
