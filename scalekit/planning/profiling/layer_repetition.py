"""A stack of identical blocks is traced with a few of them, and the trace is then made as long as the whole stack.

Blocks that are the same do the same. Of a stack of identical blocks four stay: the first and the last have neighbours of
another kind; the two in the middle must turn out equal event by event, what each event refers to told from where its block
stands. Copies of a middle one then stand for the blocks left out. Where the two are not equal, nothing is taken for granted,
and the whole model is traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalekit.planning.profiling.block_stacks import KEPT, Stack, UnevenError
from scalekit.planning.profiling.tracing import Event, Trace

_MODEL = 1  # the block of those kept that the copies are made of; they come right after it


def lengthen(trace: Trace, stack: Stack) -> Trace:
    """The trace of the whole stack, from one of a stack with `KEPT` blocks.

    Raises:
        UnevenError: the middle blocks differ.
    """
    return _Longer(trace, stack).trace()


_WHAT = {
    Event.ALLOCATE: "storage",
    Event.FREE: "storage",
    Event.OPERATE: "operation",
    Event.GRADIENT: "parameter",
    Event.ENTER: "module",
    Event.LEAVE: "module",
    Event.ENTER_BACKWARD: "module",
    Event.LEAVE_BACKWARD: "module",
    Event.BACKWARD: "nothing",
}

# What an event refers to: something of a block so many places away (with its number in that block), or, where the place is
# None, something outside of the stack.
_Reference = tuple[int | None, int]


class _Longer:
    """Copies the model block's events; see the module's text.

    Places number the blocks of the long stack: 0 and 1 stay, 2 to `copies` + 1 are the copies, and what was 2 and 3 follows.
    """

    def __init__(self, trace: Trace, stack: Stack) -> None:
        self._short, self._stack, self._copies = trace, stack, stack.left_out
        self._names = [f"{stack.path}.{i}" for i in range(KEPT)]
        self._kinds, self._subjects = trace.kinds.tolist(), trace.subjects.tolist()
        self._sizes = {
            "storage": len(trace.storage_bytes),
            "operation": len(trace.flops),
            "parameter": len(trace.parameters),
            "module": len(trace.modules),
        }
        self._forward, self._backward = self._ranges()
        self._members = [self._owned_by(place) for place in range(KEPT)]
        self._owner = {
            (what, index): (place, number)
            for place, members in enumerate(self._members)
            for what, indices in members.items()
            for number, index in enumerate(indices)
        }

    def trace(self) -> Trace:
        self._check()
        short = self._short
        kinds: list[int] = []
        subjects: list[int] = []

        def add(event: int, subject: int) -> None:
            kinds.append(self._kinds[event])
            subjects.append(subject)

        cursor = 0
        for events, old_place, places in self._walk():
            for event in range(cursor, events.start):
                for subject in self._outside(event):
                    add(event, subject)
            for new_place in places:
                for event in events:
                    what, subject = _WHAT[Event(self._kinds[event])], self._subjects[event]
                    add(event, self._translated(what, subject, old_place, new_place))
            cursor = events.stop
        for event in range(cursor, len(self._kinds)):
            for subject in self._outside(event):
                add(event, subject)

        if _left(kinds) != _left(self._kinds):
            raise UnevenError(f"what the blocks of {self._stack.path} keep is not released alike")

        def tiled(values: NDArray[Any], what: str) -> NDArray[Any]:
            return np.concatenate([values, np.tile(values[self._members[_MODEL][what]], self._copies)])

        return replace(
            short,
            kinds=np.array(kinds, np.int8),
            subjects=np.array(subjects, np.int32),
            storage_bytes=tiled(short.storage_bytes, "storage"),
            handed=self._handed(),
            flops=tiled(short.flops, "operation"),
            moved_bytes=tiled(short.moved_bytes, "operation"),
            low_precision=tiled(short.low_precision, "operation"),
            sorts=tiled(short.sorts, "operation"),
            parameters=self._parameters(),
            modules=self._modules(),
            owned=self._owned(),
            blocks=self._blocks(),
        )

    def _walk(self) -> Iterator[tuple[range, int, Sequence[int]]]:
        """The blocks' events in order, and the places of the long stack that each range of them is for."""
        last = self._copies + _MODEL
        for place in range(KEPT - 1):
            yield self._forward[place], place, range(_MODEL, last + 1) if place == _MODEL else [self._moved(place)]
        for place in range(KEPT - 1, 0, -1):
            yield self._backward[place], place, range(last, 0, -1) if place == _MODEL else [self._moved(place)]

    def _outside(self, event: int) -> list[int]:
        """What an event outside of the blocks is about, in the long stack.

        What happens there to both middle blocks, such as the release of something kept for the whole pass, happens to each
        copy. What happens to one of them alone is the business of a neighbour that is itself outside.
        """
        key = _WHAT[Event(self._kinds[event])], self._subjects[event]
        place, number = self._owner.get(key, (None, 0))
        if place != _MODEL or (self._kinds[event], number) not in self._to_all:
            return [key[1]]
        copies = range(_MODEL + 1, _MODEL + 1 + self._copies)
        return [key[1], *(self._translated(*key, _MODEL, place) for place in copies)]

    @cached_property
    def _to_all(self) -> set[tuple[int, int]]:
        """The kinds of events outside of the blocks, and the numbers of what they are about, that both middle blocks meet."""
        inside = {e for events in (*self._forward, *self._backward.values()) for e in events}
        met: list[set[tuple[int, int]]] = [set() for _ in range(KEPT)]
        for e, (kind, subject) in enumerate(zip(self._kinds, self._subjects, strict=True)):
            place, number = self._owner.get((_WHAT[Event(kind)], subject), (None, 0))
            if place is not None and e not in inside:
                met[place].add((kind, number))
        return met[_MODEL] & met[_MODEL + 1]

    def _moved(self, place: int) -> int:
        return place if place <= _MODEL else place + self._copies

    def _ranges(self) -> tuple[list[range], dict[int, range]]:
        """Each block's events: forward for all but the last block, backward for all but the first."""
        blocks = [self._short.modules.index(name) for name in self._names]
        enter = [self._first(Event.ENTER, b) for b in blocks]
        back = [self._first(Event.ENTER_BACKWARD, b) for b in blocks]
        if enter != sorted(enter) or back != sorted(back, reverse=True):
            raise UnevenError(f"the blocks of {self._stack.path} do not run one after another")
        forward = [range(enter[i], enter[i + 1]) for i in range(KEPT - 1)]
        return forward, {i: range(back[i], back[i - 1]) for i in range(1, KEPT)}

    def _first(self, kind: Event, subject: int) -> int:
        found = np.flatnonzero((self._short.kinds == kind) & (self._short.subjects == subject))
        if not len(found):
            raise UnevenError(f"a block of {self._stack.path} takes no part in the step")
        return int(found[0])

    def _owned_by(self, place: int) -> dict[str, list[int]]:
        """What belongs to a block, numbered in the same order for each."""
        name = self._names[place]
        return {
            "module": [i for i, n in enumerate(self._short.modules) if _inside(n, name)],
            "parameter": [i for i, p in enumerate(self._short.parameters) if _inside(p.name, name)],
            "storage": self._made(place, Event.ALLOCATE),
            "operation": self._made(place, Event.OPERATE),
        }

    def _made(self, place: int, kind: Event) -> list[int]:
        """What a block makes forward and then backward; -1 stands for what the last one makes forward, which is not known."""

        def subjects(events: Iterable[int]) -> list[int]:
            return [self._subjects[e] for e in events if self._kinds[e] == kind]

        is_last = place == KEPT - 1
        forward = [-1 for _ in subjects(self._forward[_MODEL])] if is_last else subjects(self._forward[place])
        return forward + subjects(self._backward.get(place, ()))

    def _check(self) -> None:
        one, other = _MODEL, _MODEL + 1
        sizes = ((self._short.storage_bytes, "storage"), (self._short.flops, "operation"))
        same = self._seen_from(one) == self._seen_from(other)
        same = same and all(
            np.array_equal(values[self._members[one][what]], values[self._members[other][what]])
            for values, what in sizes
        )
        if not same:
            raise UnevenError(f"the blocks of {self._stack.path} look the same and do not do the same")

    def _seen_from(self, place: int) -> list[tuple[int, _Reference]]:
        events = [*self._forward[place], *self._backward[place]]
        return [
            (self._kinds[e], self._relative(_WHAT[Event(self._kinds[e])], self._subjects[e], place)) for e in events
        ]

    def _relative(self, what: str, index: int, place: int) -> _Reference:
        owner = self._owner.get((what, index))
        return (None, index) if owner is None else (owner[0] - place, owner[1])

    def _translated(self, what: str, index: int, old_place: int, new_place: int) -> int:
        """What a block at `new_place` means where the one that stood at `old_place` means `index`."""
        away, number = self._relative(what, index, old_place)
        if away is None:
            return index
        place = new_place + away
        if place <= _MODEL:
            return self._members[place][what][number]
        if place <= _MODEL + self._copies:
            return self._sizes[what] + (place - _MODEL - 1) * len(self._members[_MODEL][what]) + number
        return self._members[place - self._copies][what][number]

    def _handed(self) -> NDArray[np.int32]:
        own = [int(self._short.handed[index]) for index in self._members[_MODEL]["parameter"]]
        copied = [
            -1 if storage < 0 else self._translated("storage", storage, _MODEL, _MODEL + 1 + copy)
            for copy in range(self._copies)
            for storage in own
        ]
        return np.concatenate([self._short.handed, np.array(copied, np.int32)])

    def _renamed(self, name: str, copy: int | None = None) -> str:
        """A name in the long stack: of a copy, or of a block that now comes later."""
        for place, block in enumerate(self._names):
            if _inside(name, block):
                moved = self._moved(place) if copy is None else _MODEL + 1 + copy
                return f"{self._stack.path}.{moved}{name.removeprefix(block)}"
        return name

    def _parameters(self) -> list[Any]:
        short = self._short.parameters
        own = [short[i] for i in self._members[_MODEL]["parameter"]]
        stayed = [replace(p, name=self._renamed(p.name)) for p in short]
        return stayed + [replace(p, name=self._renamed(p.name, copy)) for copy in range(self._copies) for p in own]

    def _modules(self) -> list[str]:
        own = [self._short.modules[i] for i in self._members[_MODEL]["module"]]
        stayed = [self._renamed(name) for name in self._short.modules]
        return stayed + [self._renamed(name, copy) for copy in range(self._copies) for name in own]

    def _owned(self) -> list[tuple[int, ...]]:
        own = [self._short.owned[i] for i in self._members[_MODEL]["module"]]
        return list(self._short.owned) + [
            tuple(self._translated("parameter", index, _MODEL, _MODEL + 1 + copy) for index in each)
            for copy in range(self._copies)
            for each in own
        ]

    def _blocks(self) -> list[int]:
        """All blocks in the order they run in."""
        model = self._short.modules.index(self._names[_MODEL])
        copies = [self._translated("module", model, _MODEL, _MODEL + 1 + copy) for copy in range(self._copies)]
        at = self._short.blocks.index(model) + 1
        return [*self._short.blocks[:at], *copies, *self._short.blocks[at:]]


def _left(kinds: list[int]) -> int:
    """Storages that are never freed."""
    return kinds.count(Event.ALLOCATE) - kinds.count(Event.FREE)


def _inside(name: str, block: str) -> bool:
    return name == block or name.startswith(block + ".")
