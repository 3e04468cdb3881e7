"""The operations of a pickle that build plain values, followed one by one without calling anything.

Format: PEP 3154, and the standard library's ``pickletools``, which knows how each is written.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from qinfer.core.checkpoint.safetensors_file import shown

Path = tuple[str, str]
"""A module and a name in it."""

OPERATIONS = {entry.code.encode("latin-1"): entry for entry in pickletools.opcodes}

MOST_STEPS = 2_000_000
MOST_TEXT = 2**20
"""Bounds on a file's operations, and on the bytes of one that does not hold an array's numbers."""

BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8}
"""Operations that hold bytes, and how many bytes their length takes."""

NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(Exception):
    """What a file may not do, in words."""


@dataclass(frozen=True)
class Global:
    """A name that the file gives, one of those it may."""

    path: Path


@dataclass(frozen=True)
class Payload:
    """Bytes that stay in the file."""

    offset: int
    nbytes: int


class PickleSteps:
    """A pickle's stack, marks and memory, over plain values; it calls nothing that a file names.

    ``known``: all that it may name. ``made`` and ``build`` give a meaning to a call, and to the
    state of what a call made.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        known: Container[Path],
        made: Callable[[Any, Any], Any],
        build: Callable[[Any, Any], None],
    ) -> None:
        self.file, self.size = file, size
        self.known, self.made, self.build = known, made, build
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memory: list[Any] = []

    def run(self) -> Any:
        """What the file leaves on the stack."""
        for _ in range(MOST_STEPS):
            code = self.file.read(1)
            operation = OPERATIONS.get(code)
            if operation is None:
                raise Refused("it ends early or is no pickle")
            if operation.name == "STOP":
                return self.pop()
            argument = self.argument(operation)
            try:
                self.step(operation.name, argument)
            except (IndexError, TypeError, ValueError):
                raise Refused(f"its operation {operation.name} does not fit") from None
        raise Refused(f"it takes more than {MOST_STEPS:,} steps")

    def argument(self, operation: pickletools.OpcodeInfo) -> Any:
        """What follows an operation's byte; of bytes, where they are."""
        width = BYTES.get(operation.name)
        if width is not None:
            count, at = int.from_bytes(self.file.read(width), "little"), self.file.tell()
            if count > self.size - at:
                raise Refused("its bytes go beyond its end")
            self.file.seek(count, 1)
            return Payload(at, count)
        if operation.arg is None:
            return None
        try:
            return operation.arg.reader(cast(BinaryIO, _Bounded(self.file)))
        except (ValueError, UnicodeError):
            raise Refused(f"its operation {operation.name} is damaged") from None

    def pop(self) -> Any:
        """The topmost value. A mark that is left out of account may not be passed."""
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        """The values above the last mark, taken off."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def step(self, name: str, argument: Any) -> None:
        """One operation. Raises Refused for those that a dictionary of arrays has no use for."""
        push = self.stack.append
        if name in BYTES or name in NUMBERS:
            push(argument)
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "EMPTY_DICT":
            push({})
        elif name == "EMPTY_LIST":
            push([])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in TUPLES:
            parts = [self.pop() for _ in range(TUPLES[name])]
            push(tuple(reversed(parts)))
        elif name == "TUPLE":
            push(tuple(self.since_mark()))
        else:
            self.refer(name, argument)

    def refer(self, name: str, argument: Any) -> None:
        """Operations on what is there already."""
        if name == "MEMOIZE":
            self.memory.append(self.stack[-1])
        elif name in ("BINPUT", "LONG_BINPUT"):
            if argument != len(self.memory):
                raise Refused("it numbers what it remembers out of order")
            self.memory.append(self.stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memory[argument])
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.since_mark() if name == "SETITEMS" else self.stack[-2:], name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(self.name(argument))
        elif name == "REDUCE":
            arguments, call = self.pop(), self.pop()
            self.stack.append(self.made(call, arguments))
        elif name == "BUILD":
            state, target = self.pop(), self.stack[-1]
            self.build(target, state)
        else:
            raise Refused(f"it uses the operation {name}")

    def set_items(self, parts: list[Any], name: str) -> None:
        """Enter keys and values into a dictionary."""
        if name == "SETITEM":
            del self.stack[-2:]
        target = self.stack[-1]
        if not isinstance(target, dict) or len(parts) % 2:
            raise ValueError
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            if not isinstance(key, str) or key in target:
                raise Refused("a key of its dictionary is no text, or is there twice")
            target[key] = value

    def name(self, argument: Any) -> Global:
        """A name, if it is one of those that arrays need."""
        if argument is None:
            second, first = self.pop(), self.pop()
        else:
            first, _, second = argument.partition(" ")
        if (first, second) not in self.known:
            raise Refused(f"it names {shown(f'{first}.{second}')}, which a model has no use for")
        return Global((first, second))


class _Bounded:
    """A file of which no more than MOST_TEXT bytes are read at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, count: int) -> bytes:
        """Some bytes."""
        if not 0 <= count <= MOST_TEXT:
            raise Refused(f"a text of it has {count:,} bytes")
        return self.file.read(count)

    def readline(self) -> bytes:
        """A line."""
        return self.file.readline(MOST_TEXT)
