"""The pickle in a file of torch.save, read without running it.

A pickle is a program for a machine with a stack: it imports what it names, calls it, and so makes the value. torch's `weights_only=True`
runs the program too, if with a list of what may be called; and some of that list takes as much memory as a file of a few bytes asks for
(`bytearray`, `_codecs.encode`, a numpy scalar of a type of 2 GB). Here nothing is imported and nothing called. The stack holds lists,
dictionaries, tuples, numbers and texts; the few names that tensors are saved with mean something to this module, and any other is refused.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diver_trt.errors import DatasetError, shown

_MAX_STEPS = 500_000
"""Instructions that the pickles of a file may have: a tensor takes 40, a numpy float 14. Each makes at most some hundred bytes."""

_STORAGES = {
    "torch.HalfStorage": "float16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_DICTIONARY = "collections.OrderedDict"
_PASSED_OVER = {
    "_codecs.encode",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "__builtin__.set",
    "builtins.set",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    *(f"torch.{dtype}" for dtype in _STORAGES.values()),
}
"""Harmless values beside the tensors, which read as None: the accuracies in `res_*.pt` of DC, DSA, DM and CAFE are numpy's numbers."""

NAMES = {*_STORAGES, *_TENSORS, *_PARAMETERS, _WITH_ATTRIBUTES, _DICTIONARY, *_PASSED_OVER}

_CONSTANTS: Mapping[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_UNUSUAL_TENSOR = re.compile(r"torch\.(_utils\._rebuild_\w+|(storage\.)?\w+Storage)")
_MAX_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """The values that one or more tensors share: their numpy type, and the name that the file has for them."""

    dtype: str
    key: str


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor as it was saved: nothing of it is checked against the file.

    Attributes:
        storage: Where its values are.
        start: Which of them is its first.
        shape: Length of each axis, not negative.
        strides: Distance between neighbours along each axis in values, not negative.
    """

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchPickle:
    """The pickles of one file.

    Args:
        path: The file, for messages.
        stream: The pickles one after the other, in memory.

    Attributes:
        storages: Those that were named so far, by their key.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._steps = iter(range(_MAX_STEPS))
        self.storages: dict[str, Storage] = {}

    def read(self) -> Any:
        """Return what the next pickle describes: lists, tuples, dictionaries, numbers, texts and `SavedTensor`.

        What is passed over is None. Lists and dictionaries may hold themselves.

        Raises:
            DatasetError: If it names anything but tensors and what belongs to them, or has instructions that no
                plain data needs. Protocols 2, which torch.save writes unless told otherwise, to 5 are read.
            Exception: If it is damaged: an IndexError, KeyError, TypeError, ValueError or RecursionError.
        """
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        argument: Any
        for opcode, argument, _ in pickletools.genops(self._stream):
            if next(self._steps, None) is None:
                raise DatasetError(
                    f"{self._path}: holds too much beside its tensors; save the tensors alone"
                )
            match opcode.name:
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case (
                    "BINUNICODE"
                    | "SHORT_BINUNICODE"
                    | "BINUNICODE8"
                    | "SHORT_BINSTRING"
                    | "SHORT_BINBYTES"
                    | "BINBYTES"
                    | "BINBYTES8"
                    | "BININT"
                    | "BININT1"
                    | "BININT2"
                    | "LONG1"
                    | "LONG4"
                    | "BINFLOAT"
                ):
                    stack.append(argument)
                case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                    stack.append(_CONSTANTS[opcode.name])
                case "GLOBAL":
                    stack.append(self._permitted(argument.replace(" ", ".", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    if not isinstance(name, str) or not isinstance(module, str):
                        raise ValueError("a name that is not a text")
                    stack.append(self._permitted(f"{module}.{name}"))
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    size = int(opcode.name[-1])
                    stack[-size:] = [tuple(stack[-size:])]
                case "EMPTY_LIST":
                    stack.append([])
                case "APPEND":
                    item = stack.pop()
                    list.append(stack[-1], item)
                case "APPENDS":
                    items = since_mark()
                    list.extend(stack[-1], items)
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    dict.update(stack[-1], _entries([key, value]))
                case "SETITEMS":
                    items = since_mark()
                    dict.update(stack[-1], _entries(items))
                case "EMPTY_SET":
                    # Sets are passed over, as `__builtin__.set` of protocol 2 is.
                    stack.append(None)
                case "ADDITEMS":
                    since_mark()
                case "FROZENSET":
                    since_mark()
                    stack.append(None)
                case "REDUCE":
                    arguments, name = stack.pop(), stack.pop()
                    stack.append(self._made(name, arguments))
                case "BUILD":
                    stack.pop()  # attributes of a dictionary, or the byte order of a numpy type
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case "PROTO" | "FRAME" | "STOP":  # a frame says how much to read ahead
                    pass
                case unknown:
                    raise DatasetError(
                        f"{self._path}: holds Python objects (written with {unknown}), which are never loaded; save the tensors alone"
                    )
        return stack.pop()

    def _permitted(self, name: str) -> str:
        if name in NAMES:
            return name
        if _UNUSUAL_TENSOR.fullmatch(name):
            raise DatasetError(
                f"{self._path}: holds a tensor of an unusual kind ({shown(name)}); save it as a dense one of float32"
            )
        raise DatasetError(
            f"{self._path}: holds more than tensors ({shown(name)}), and nothing else is ever loaded; save the tensors alone"
        )

    def _made(self, name: object, arguments: Sequence[Any]) -> Any:
        # A tuple of tuples is not even hashed, which may take for ever.
        if not isinstance(name, str):
            raise TypeError("calls what is no function")
        if name in _TENSORS:
            return self._tensor(arguments)
        if name in _PARAMETERS:
            return arguments[0]
        if name == _WITH_ATTRIBUTES:
            return self._made(arguments[0], arguments[2])
        if name == _DICTIONARY and not arguments:
            return {}
        if name in _PASSED_OVER:
            return None
        raise ValueError("calls what is no function")

    def _tensor(self, arguments: Sequence[Any]) -> SavedTensor:
        storage, start, shape, strides = arguments[:4]
        if not isinstance(storage, Storage) or not len(shape) == len(strides) <= _MAX_DIMENSIONS:
            raise ValueError("a tensor of no shape")
        if any(type(number) is not int or number < 0 for number in (start, *shape, *strides)):
            raise ValueError("a tensor of no shape")
        if any(arguments[6:7]):
            raise DatasetError(
                f"{self._path}: holds a negated or conjugate view of a tensor; save it with .resolve_neg()"
            )
        return SavedTensor(storage, start, tuple(shape), tuple(strides))

    def _storage(self, saved: Sequence[Any]) -> Storage:
        kind, name, key = saved[:3]
        if kind != "storage" or not isinstance(name, str) or not isinstance(key, str):
            raise ValueError("values that are no storage")
        return self.storages.setdefault(key, Storage(_STORAGES[name], key))


def _entries(items: Sequence[Any]) -> dict[str, Any]:
    """Return a dictionary of keys and values in turn. Numbers become texts, and other keys are left out: to hash them may take for ever."""
    return {
        str(key): value
        for key, value in zip(items[::2], items[1::2], strict=True)
        if isinstance(key, (str, int, float))
    }
