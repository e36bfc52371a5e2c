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
    """The pickles of one file, each read by a stack machine: one method per family of instructions.

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
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

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
        self._stack, self._marks, self._memo = [], [], {}
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
            instruction(self, argument)
        return self._stack.pop()

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

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _nothing(self, _: Any) -> None:
        """PROTO, STOP; and FRAME, which states how much to read ahead."""

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _put(self, key: int | None) -> None:
        # MEMOIZE takes no argument: its key is the number of entries so far.
        self._memo[len(self._memo) if key is None else key] = self._stack[-1]

    def _get(self, key: int) -> None:
        self._stack.append(self._memo[key])

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _name(self, module_and_name: str) -> None:
        # pickletools joins the two lines of GLOBAL, module and name, by a space.
        self._stack.append(self._permitted(module_and_name.replace(" ", ".", 1)))

    def _stack_name(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not a text")
        self._stack.append(self._permitted(f"{module}.{name}"))

    def _marked_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        list.append(self._stack[-1], item)  # unbound, so that it raises on anything but a list

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        list.extend(self._stack[-1], items)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        dict.update(self._stack[-1], _entries([key, value]))

    def _set_items(self, _: Any) -> None:
        items = self._since_mark()
        dict.update(self._stack[-1], _entries(items))

    def _add_items(self, _: Any) -> None:
        self._since_mark()

    def _frozen_set(self, _: Any) -> None:
        self._since_mark()
        self._stack.append(None)

    def _reduce(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        self._stack.append(self._made(name, arguments))

    def _build(self, _: Any) -> None:
        # The state is the attributes of a dictionary, or the byte order of a numpy type.
        self._stack.pop()

    def _persistent(self, _: Any) -> None:
        self._stack.append(self._storage(self._stack.pop()))


def _last_as_tuple(size: int) -> Callable[[TorchPickle, Any], None]:
    def instruction(pickles: TorchPickle, _: Any) -> None:
        pickles._stack[-size:] = [tuple(pickles._stack[-size:])]

    return instruction


def _pushes(make: Callable[[], Any]) -> Callable[[TorchPickle, Any], None]:
    return lambda pickles, _: pickles._push(make())


_ARGUMENTS = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
)
"""Instructions that push the text, the bytes or the number that follows them."""

_INSTRUCTIONS: Mapping[str, Callable[[TorchPickle, Any], None]] = {
    **dict.fromkeys(_ARGUMENTS, TorchPickle._push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), TorchPickle._nothing),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), TorchPickle._put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), TorchPickle._get),
    **{f"TUPLE{size}": _last_as_tuple(size) for size in (1, 2, 3)},
    "NONE": _pushes(lambda: None),
    "NEWTRUE": _pushes(lambda: True),
    "NEWFALSE": _pushes(lambda: False),
    "EMPTY_TUPLE": _pushes(tuple),
    "EMPTY_LIST": _pushes(list),
    "EMPTY_DICT": _pushes(dict),
    "EMPTY_SET": _pushes(lambda: None),  # sets are ignored, as `__builtin__.set` of protocol 2 is
    "GLOBAL": TorchPickle._name,
    "STACK_GLOBAL": TorchPickle._stack_name,
    "MARK": TorchPickle._mark,
    "TUPLE": TorchPickle._marked_tuple,
    "APPEND": TorchPickle._append,
    "APPENDS": TorchPickle._appends,
    "SETITEM": TorchPickle._set_item,
    "SETITEMS": TorchPickle._set_items,
    "ADDITEMS": TorchPickle._add_items,
    "FROZENSET": TorchPickle._frozen_set,
    "REDUCE": TorchPickle._reduce,
    "BUILD": TorchPickle._build,
    "BINPERSID": TorchPickle._persistent,
}


def _entries(items: Sequence[Any]) -> dict[str, Any]:
    """Return a dictionary of alternating keys and values, with numbers as texts."""
    # Other keys are left out: hashing a deeply nested tuple may never end.
    return {
        str(key): value
        for key, value in zip(items[::2], items[1::2], strict=True)
        if isinstance(key, (str, int, float))
    }
