"""What a pickle of torch.save says, without running anything that is in it.

A checkpoint of another trainer often keeps its options beside the weights (an argparse.Namespace, paths, numpy's
numbers, its own classes), and unpickling these would import and call what the file names. Here nothing is imported or
called: a pickle is a list of steps, and of these are followed those that make mappings by name, and tensors. What else
a step would make is an `Inert` that says what it is called.

A step takes a bounded time, and some 250 bytes beside its text, whatever a file's author thought of; the number of
steps is limited. Numbers are not counted: what they take is bounded by their text.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch

MOST_STEPS = 1 << 19
"""Steps of a pickle, numbers aside (a list of all losses is long): some 80,000 for a ResNet-152 with an average and
AdamW's state."""
_NUMBERS = frozenset(("BININT", "BININT1", "BININT2", "BINFLOAT"))
"""Of two bytes or more, as Python writes all but the largest."""
_LONGEST_NAME = 1 << 10
"""Characters of a key. Others, and keys that are no text (an optimizer's parameters), are left out with their values:
to find equal keys takes a time that grows with them."""

_LONGEST_KIND = 200


class Inert(NamedTuple):
    """Stands for a class or function that is not looked up, and for what calling it would give."""

    kind: str = "object"


class Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    length: int


class SavedTensor(NamedTuple):
    """How a tensor lies within a storage: the arguments of torch.as_strided, as the file has them."""

    storage: Storage
    offset: Any
    size: Any
    stride: Any


_DTYPES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Double": torch.float64,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= _LONGEST_NAME


def _kind_of(called: Any) -> str:
    return called.kind if isinstance(called, Inert) else "object"


class Steps:
    """What the steps of a pickle have made so far."""

    def __init__(self) -> None:
        self._left = MOST_STEPS
        self.dtypes: dict[str, torch.dtype] = {}
        """Of the storages, by their keys."""

    def follow(self, stream: BinaryIO) -> Any:
        """The value of the pickle that begins where the stream is, which is left behind its end."""
        self.stack, self._marks, self._memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in _NUMBERS:
                self.stack.append(argument)
                continue
            self._spend(1)
            if opcode.name == "STOP":
                break
            if opcode.name not in _ACTIONS:
                raise pickle.UnpicklingError(f"{opcode.name} is no step of a file of weights")
            _ACTIONS[opcode.name](self, argument)
        return self.stack.pop()

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise pickle.UnpicklingError(f"it takes more than {MOST_STEPS:,} steps to unpickle")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any = None) -> None:
        self._marks.append(len(self.stack))

    def pop(self, _: Any = None) -> Any:
        return self.stack.pop()

    def pop_to_mark(self, _: Any = None) -> list[Any]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def remember(self, at: int | None) -> None:
        at = len(self._memo) if at is None else at
        # Python writes them in turn. Of those chosen at will many have the same hash, and are found in a time that
        # grows with their number.
        if not 0 <= at < MOST_STEPS:
            raise pickle.UnpicklingError("it remembers a value by a number far out")
        self._memo[at] = self.stack[-1]

    def recall(self, at: int) -> None:
        self.push(self._memo[at])

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items)

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Names and values in turns into the mapping on top."""
        mapping = self.stack[-1]
        if isinstance(mapping, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if _is_name(key):
                    mapping[key] = value

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def new_mapping(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def name(self, text: str) -> None:
        """A class or function by its module and name, with a space between them."""
        kind = text[:_LONGEST_KIND].replace(" ", ".", 1)
        self.push(Inert(kind if kind.isprintable() else ascii(kind)))

    def name_from_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise pickle.UnpicklingError("a class without a name")
        self.name(f"{module[:_LONGEST_KIND]} {name[:_LONGEST_KIND]}")

    def new_set(self, _: Any) -> None:
        self.pop_to_mark()
        self.push(Inert("set"))

    def new_of_name(self, text: str) -> None:
        self.pop_to_mark()
        self.name(text)

    def call(self, _: Any = None) -> None:
        """What the second on the stack would make of the arguments on top: a mapping, a tensor, or an Inert."""
        arguments, called = self.pop(), self.pop()
        kind = _kind_of(called)
        if kind == "torch._tensor._rebuild_from_type_v2":
            # What rebuilds the tensor, its class, arguments and attributes; torch does not write one within another.
            called, _, arguments = arguments[:3]
            kind = _kind_of(called)
        if kind in ("collections.OrderedDict", "collections.defaultdict"):
            # Python 2 wrote a list of pairs.
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            self._spend(len(pairs))
            self.new_mapping([item for key, value in pairs for item in (key, value)])
        elif kind in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            self.push(SavedTensor(*arguments[:4]) if isinstance(arguments[0], Storage) else Inert(kind))
        elif kind in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            self.push(arguments[0])
        else:
            self.push(Inert(kind))

    def call_with_names(self, _: Any) -> None:
        self.pop()
        self.call()

    def call_from_mark(self, _: Any) -> None:
        called, *arguments = self.pop_to_mark()
        self.push(called)
        self.push(tuple(arguments))
        self.call()

    def refer(self, _: Any) -> None:
        """What torch keeps outside of the pickle: a storage, or a class with its source."""
        reference = self.pop()
        if len(reference) > 6:
            raise pickle.UnpicklingError("an unknown kind of reference")
        what, named, key, *more = reference
        if what == "module":
            self.push(named if isinstance(named, Inert) else Inert())
            return
        _, length, *view = more
        if what != "storage" or not _is_name(key) or not isinstance(length, int) or any(view):
            raise pickle.UnpicklingError("an unknown kind of reference")
        dtype = _DTYPES.get(named.kind) if isinstance(named, Inert) else None
        if dtype is None:
            self.push(Inert())
            return
        self.dtypes[key] = dtype
        self.push(Storage(key, dtype, length))


def _pushed(make: Callable[[], Any]) -> Callable[[Steps, Any], None]:
    return lambda steps, _: steps.push(make())


_ACTIONS: dict[str, Callable[[Steps, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    **dict.fromkeys(
        (
            *("INT", "LONG", "LONG1", "LONG4", "FLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ),
        Steps.push,
    ),
    "NONE": _pushed(lambda: None),
    "NEWTRUE": _pushed(lambda: True),
    "NEWFALSE": _pushed(lambda: False),
    "EMPTY_LIST": _pushed(list),
    "EMPTY_TUPLE": _pushed(tuple),
    "EMPTY_DICT": _pushed(dict),
    "EMPTY_SET": _pushed(lambda: Inert("set")),
    "MARK": Steps.mark,
    "POP": Steps.pop,
    "POP_MARK": Steps.pop_to_mark,
    "DUP": lambda steps, _: steps.push(steps.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Steps.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Steps.recall),
    "TUPLE": lambda steps, _: steps.push(tuple(steps.pop_to_mark())),
    **{f"TUPLE{count}": lambda steps, _, count=count: steps.tuple_of(count) for count in (1, 2, 3)},
    "LIST": lambda steps, _: steps.push(steps.pop_to_mark()),
    "APPEND": lambda steps, _: steps.extend([steps.pop()]),
    "APPENDS": lambda steps, _: steps.extend(steps.pop_to_mark()),
    "DICT": lambda steps, _: steps.new_mapping(steps.pop_to_mark()),
    "SETITEM": Steps.set_item,
    "SETITEMS": lambda steps, _: steps.set_items(steps.pop_to_mark()),
    "ADDITEMS": Steps.pop_to_mark,
    "FROZENSET": Steps.new_set,
    "GLOBAL": Steps.name,
    "STACK_GLOBAL": Steps.name_from_stack,
    "INST": Steps.new_of_name,
    "OBJ": Steps.call_from_mark,
    "REDUCE": Steps.call,
    "NEWOBJ": Steps.call,
    "NEWOBJ_EX": Steps.call_with_names,
    "BUILD": Steps.pop,
    "BINPERSID": Steps.refer,
}
"""What is done at a step, by its name in pickletools. There is none for extensions of pickle and buffers beside it."""
