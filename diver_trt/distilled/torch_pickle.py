"""The pickle in a file of torch.save, read without running it.

A pickle is a program for a stack machine: it imports what it names and calls it, and so builds the
value. Here nothing is imported and nothing is called. The stack holds lists, dictionaries, tuples,
numbers and texts; this module interprets the few names that tensors are saved with, and refuses any
other.

The instructions: https://docs.python.org/3/library/pickletools.html
"""

# Why not torch.load(weights_only=True): it runs the program too, limited to a list of functions,
# some of which allocate as much as a file of a few bytes requests (`bytearray`, `_codecs.encode`, a
# numpy scalar of a type of 2 GB). https://github.com/pytorch/pytorch/pull/86812

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diver_trt.errors import DatasetError, shown

_MAX_STEPS = 500_000
"""Maximum number of instructions in the pickles of a file.

Each allocates at most some hundred bytes. A tensor takes 40, a numpy float 14.
"""

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
# A tensor with attributes of its own; called with a function, a type, its arguments, a state.
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_DICTIONARY = "collections.OrderedDict"
_IGNORED = {
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
"""Harmless values beside the tensors, which read as None.

The accuracies in `res_*.pt` of DC, DSA, DM and CAFE are numpy floats.
"""

NAMES = {*_STORAGES, *_TENSORS, *_PARAMETERS, _WITH_ATTRIBUTES, _DICTIONARY, *_IGNORED}

_UNUSUAL_TENSOR = re.compile(r"torch\.(_utils\._rebuild_\w+|(storage\.)?\w+Storage)")
_MAX_DIMENSIONS = 32  # what an array of numpy before 2.0 may have


@dataclass(frozen=True, slots=True)
class Storage:
    """The values that one or more tensors share: their numpy type, and their name in the file."""

    dtype: str
    key: str


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor as the pickle describes it, not yet compared with the file.

    Attributes:
        storage: Where its values are.
        start: Position of its first value in the storage.
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
        storages: The storages that were named so far, by their key.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._steps = iter(range(_MAX_STEPS))
        self.storages: dict[str, Storage] = {}

    def read(self) -> Any:
        """Return what the next pickle describes.

        The protocols 2 to 5 are read; torch.save writes 2 by default.

        Returns:
            Lists, tuples, dictionaries, numbers, texts and `SavedTensor`; ignored values are None.
            A list or dictionary may hold itself.

        Raises:
            DatasetError: If it names anything but tensors and what belongs to them, or has
                instructions that plain data never needs.
            IndexError, KeyError, TypeError, ValueError or RecursionError: If it is damaged.
        """
        machine = _Machine(self._made, self._permitted, self._storage)
        for opcode, argument, _ in pickletools.genops(self._stream):
            if next(self._steps, None) is None:
                raise DatasetError(
                    f"{self._path}: holds too much beside its tensors; save the tensors alone"
                )
            instruction = _INSTRUCTIONS.get(opcode.name)
            if instruction is None:
                raise DatasetError(
                    f"{self._path}: holds Python objects (written with {opcode.name}), which are "
                    "never loaded; save the tensors alone"
                )
            instruction(machine, argument)
        return machine.stack.pop()

    def _permitted(self, name: str) -> str:
        if name in NAMES:
            return name
        if _UNUSUAL_TENSOR.fullmatch(name):
            raise DatasetError(
                f"{self._path}: holds a tensor of an unusual kind ({shown(name)}); save it as a "
                "dense one of float32"
            )
        raise DatasetError(
            f"{self._path}: holds more than tensors ({shown(name)}), and nothing else is ever "
            "loaded; save the tensors alone"
        )

    def _made(self, name: object, arguments: Sequence[Any]) -> Any:
        # Checked before any lookup: hashing a tuple of itself twice, 60 times over, never ends.
        if not isinstance(name, str):
            raise TypeError("REDUCE of something that is not callable")
        if name in _TENSORS:
            return self._tensor(arguments)
        # The tensor comes first; whether it requires a gradient, and its hooks, do not matter.
        if name in _PARAMETERS:
            return arguments[0]
        if name == _WITH_ATTRIBUTES:
            return self._made(arguments[0], arguments[2])
        if name == _DICTIONARY and not arguments:
            return {}
        if name in _IGNORED:
            return None
        raise ValueError("REDUCE of something that is not callable")

    def _tensor(self, arguments: Sequence[Any]) -> SavedTensor:
        storage, start, shape, strides = arguments[:4]
        if not isinstance(storage, Storage) or not len(shape) == len(strides) <= _MAX_DIMENSIONS:
            raise ValueError("a tensor without a valid shape")
        # Exactly `int`: True would pass for 1.
        if any(type(number) is not int or number < 0 for number in (start, *shape, *strides)):
            raise ValueError("a tensor without a valid shape")
        # The seventh argument is metadata such as {"conj": True, "neg": True}: the values in the
        # file are then not the tensor's.
        # https://github.com/pytorch/pytorch/blob/main/torch/_utils.py (_rebuild_tensor_v2)
        if any(arguments[6:7]):
            raise DatasetError(
                f"{self._path}: holds a negated or conjugate view of a tensor; save it with "
                ".resolve_neg()"
            )
        return SavedTensor(storage, start, tuple(shape), tuple(strides))

    def _storage(self, saved: Sequence[Any]) -> Storage:
        kind, name, key = saved[:3]
        if kind != "storage" or not isinstance(name, str) or not isinstance(key, str):
            raise ValueError("a persistent ID that does not name a storage")
        # One type for each storage: torch.save refuses views of one as several types.
        return self.storages.setdefault(key, Storage(_STORAGES[name], key))


class _Machine:
    """The stack that a pickle's instructions work on, one method for each family of them.

    Args:
        made: Returns the result of a call, from the name and the arguments.
        permitted: Returns a name, or refuses it.
        storage: Returns a storage, from its persistent ID.
    """

    def __init__(
        self,
        made: Callable[[object, Sequence[Any]], Any],
        permitted: Callable[[str], str],
        storage: Callable[[Sequence[Any]], Storage],
    ) -> None:
        self._made, self._permitted, self._stored = made, permitted, storage
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def nothing(self, _: Any) -> None:
        """PROTO, STOP; and FRAME, which states how much to read ahead."""

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, key: int | None) -> None:
        # MEMOIZE takes no argument: its key is the number of entries so far.
        self._memo[len(self._memo) if key is None else key] = self.stack[-1]

    def get(self, key: int) -> None:
        self.stack.append(self._memo[key])

    def mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def name(self, module_and_name: str) -> None:
        # pickletools joins the two lines of GLOBAL, module and name, by a space.
        self.stack.append(self._permitted(module_and_name.replace(" ", ".", 1)))

    def stack_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not a text")
        self.stack.append(self._permitted(f"{module}.{name}"))

    def marked_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        list.append(self.stack[-1], item)  # unbound, so that it raises on anything but a list

    def appends(self, _: Any) -> None:
        items = self._since_mark()
        list.extend(self.stack[-1], items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        dict.update(self.stack[-1], _entries([key, value]))

    def set_items(self, _: Any) -> None:
        items = self._since_mark()
        dict.update(self.stack[-1], _entries(items))

    def add_items(self, _: Any) -> None:
        self._since_mark()

    def frozen_set(self, _: Any) -> None:
        self._since_mark()
        self.stack.append(None)

    def reduce(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(self._made(name, arguments))

    def build(self, _: Any) -> None:
        # The state is the attributes of a dictionary, or the byte order of a numpy type.
        self.stack.pop()

    def persistent(self, _: Any) -> None:
        self.stack.append(self._stored(self.stack.pop()))


def _last_as_tuple(size: int) -> Callable[[_Machine, Any], None]:
    def instruction(machine: _Machine, _: Any) -> None:
        machine.stack[-size:] = [tuple(machine.stack[-size:])]

    return instruction


def _pushes(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


_ARGUMENTS = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
)
"""Instructions that push the text, the bytes or the number that follows them."""

_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_ARGUMENTS, _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.nothing),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    **{f"TUPLE{size}": _last_as_tuple(size) for size in (1, 2, 3)},
    "NONE": _pushes(lambda: None),
    "NEWTRUE": _pushes(lambda: True),
    "NEWFALSE": _pushes(lambda: False),
    "EMPTY_TUPLE": _pushes(tuple),
    "EMPTY_LIST": _pushes(list),
    "EMPTY_DICT": _pushes(dict),
    "EMPTY_SET": _pushes(lambda: None),  # sets are ignored, as `__builtin__.set` of protocol 2 is
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.marked_tuple,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}


def _entries(items: Sequence[Any]) -> dict[str, Any]:
    """Return a dictionary of alternating keys and values, with numbers as texts."""
    # Other keys are left out: hashing a deeply nested tuple may never end.
    return {
        str(key): value
        for key, value in zip(items[::2], items[1::2], strict=True)
        if isinstance(key, (str, int, float))
    }
