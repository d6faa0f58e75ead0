"""Finds which characters of a rendered conversation the assistant generates, by rendering it with marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, final

from scalekit.data.encoders.marks import OPEN, STOP, Drawn, Mark, Message, Span, called, marked, said
from scalekit.data.encoders.template_page import Page
from scalekit.errors import DataError, RowError

WAYS_OUT = "Use loss_on='all', or a chat template with {% generation %} tags"


# What is marked; the next where a template does not write the same text with those marks.
_LEVELS = (("other", "said", "called", "empty"), ("said", "called"), ())


@final
class Search:
    """Finds the assistant's turns in a conversation.

    Args:
        page: the template.
        messages: the conversation.
        text: it, rendered.
    """

    def __init__(self, page: Page, messages: Sequence[Message], text: str) -> None:
        self.text = text
        self._page = page
        self._plain = messages
        self._marks: list[Mark] = []
        for kinds in _LEVELS:
            self._messages, self._names = marked(messages, kinds)
            drawn = self._draw(self._messages)
            if drawn and drawn.text == self.text:
                self._marks = drawn.marks
                break
        self._special = page.special()
        self._starts: dict[tuple[str, Any, str], str | None] = {}
        self._ends: dict[str, int] = {}

    def spans(self) -> Iterator[Span]:
        """One for each of the assistant's turns."""
        last = -1
        for i, message in enumerate(self._plain):
            if message.get("role") == "assistant":
                turn, last = self._turn(i, last)
                start = self._start(turn)
                end = self._end(turn, start)
                self._check(turn, start, end)
                yield start, end

    def _turn(self, i: int, last: int) -> tuple[_Turn, int]:
        """A turn among the marks that come after number `last`, and the number of the last mark up to its end."""
        marks, names = self._marks, self._names[i]
        own: list[Mark] = []
        first = next((k for k in range(last + 1, len(marks)) if marks[k].name in names), None)
        if first is None:  # nothing of the turn is marked: it comes after the last message before it that is
            before = next((names for names in reversed(self._names[:i]) if names), [])
            found = (k for k in range(max(last, 0), len(marks)) if marks[k].name in before and not marks[k].opens)
            last = next(found, last)
        else:
            own = list(takewhile(lambda mark: mark.name in names, marks[first:]))
            last = first + len(own) - 1
        base = marks[last - len(own)] if last >= len(own) else None
        limit = marks[last + 1].place if last + 1 < len(marks) else len(self.text)
        if own and any(mark.name in set(names) - {mark.name for mark in own} for mark in marks[last + 1 :]):
            raise self._unsettled(i, "is written in parts, with other messages between them")
        # Later marks of a name are echoes, such as of a tool's name above its result
        own = [mark for k, mark in enumerate(own) if not any(_same([mark], other) for other in own[:k])]
        return _Turn(i, base, own, limit), last

    def _start(self, turn: _Turn) -> int:
        """What stands before the turn and ends its generation prompt is given to the model; the turn starts after it."""
        prompt = self._kept(self._prompt, turn)
        if prompt is not None and self.text.startswith(prompt, turn.place):
            return turn.place + len(prompt)
        # The template ends the prompt with what it leaves out of this turn, such as an open <think>, or it has no prompt
        # that begins like this conversation. So: what would it write before a plain answer in this place?
        header = self._kept(self._before_plain_answer, turn)
        if header is not None and self.text.startswith(header, turn.place):
            given = prompt.startswith(header) if prompt is not None else self._ends_with_prompt(header)
            if given:
                return turn.place + len(header)
        raise self._unsettled(turn.i, "does not follow what the template gives as a generation prompt")

    def _kept(self, find: Callable[[_Turn], str | None], turn: _Turn) -> str | None:
        """Computes only once what is the same for all turns that stand after the same role and text."""
        if not turn.own:
            return find(turn)
        before = self._plain[turn.i - 1].get("role") if turn.i else None
        key = (find.__name__, before, self.text[turn.place : turn.own[0].place])
        if key not in self._starts:
            self._starts[key] = find(turn)
        return self._starts[key]

    def _prompt(self, turn: _Turn) -> str | None:
        """What the template writes from the message before the turn to the end of the turn's generation prompt."""
        drawn = self._draw(self._messages[: turn.i], prompt=True) if turn.i else None
        if drawn is None or not _same(drawn.marks[-1:], turn.base):
            return None
        return drawn.text[drawn.marks[-1].place if turn.base else 0 :]

    def _before_plain_answer(self, turn: _Turn) -> str | None:
        answer = {"role": "assistant", "content": f"{OPEN}answer{STOP}answer"}
        drawn = self._draw([*self._messages[: turn.i], answer, *self._messages[turn.i + 1 :]])
        k = next((k for k, mark in enumerate(drawn.marks) if mark.name == "answer"), None) if drawn else None
        if drawn is None or k is None or not _same(drawn.marks[max(k - 1, 0) : k], turn.base):
            return None
        return drawn.text[drawn.marks[k - 1].place if turn.base else 0 : drawn.marks[k].place]

    def _ends_with_prompt(self, header: str) -> bool:
        """Whether it ends with what the template appends to the whole conversation as a generation prompt."""
        drawn = self._draw(self._messages, prompt=True)
        prompt = drawn.text.removeprefix(self.text) if drawn and drawn.text.startswith(self.text) else ""
        return prompt != "" and header.endswith(prompt)

    def _end(self, turn: _Turn, start: int) -> int:
        place = turn.own[-1].place if turn.own else start
        after = self.text[place : turn.limit]
        if after not in self._ends:
            self._ends[after] = self._length(turn, start, after)
        return place + self._ends[after]

    def _length(self, turn: _Turn, start: int, after: str) -> int:
        """How much of the text after a turn's last mark the turn still has.

        That is what stands there both when the conversation ends with the turn and when it goes on, up to the last special
        token. One such token at the end of the text needs no comparison.
        """
        alone: str | None = after
        onward: str | None = after
        if turn.i + 1 < len(self._plain):
            alone = self._after(turn, start, self._messages[: turn.i + 1])
        elif len(self._special.findall(after)) > 1:
            onward = self._after(turn, start, [*self._messages, {"role": "user", "content": "and"}])
        if alone is None or onward is None:
            raise self._unsettled(
                turn.i, "is not written the same where the conversation ends with it, so its end is unknown"
            )
        shared = self._shared(alone, onward)
        if ends := [found.end() for found in self._special.finditer(shared)]:
            # Without marks of its own, a turn's own special tokens cannot be told from the one that ends it
            if shared[ends[-1] :].replace(self._page.opening, "").strip() or (len(ends) > 1 and not turn.own):
                raise self._unsettled(turn.i, f"has special tokens, and none of them can be told to end it: {shared!r}")
            return ends[-1]
        first = [found.start() if (found := self._special.search(text)) else None for text in (alone, onward)]
        if first == [len(shared), len(shared)]:  # one token ends turns that others follow, and another the last
            return next(self._special.finditer(after)).end()
        if first[0] is not None or shared != alone:
            raise self._unsettled(
                turn.i, f"ends with {alone!r} where the conversation does, and with {onward!r} where it goes on"
            )
        return len(shared)  # the template ends turns with text

    def _shared(self, alone: str, onward: str) -> str:
        """What both begin with, without a part of a special token."""
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, onward, strict=False)))
        cut = [
            found.start()
            for text in (alone, onward)
            for found in self._special.finditer(text)
            if found.start() < length < found.end()
        ]
        return alone[: min([length, *cut])]

    def _after(self, turn: _Turn, start: int, messages: Sequence[Message]) -> str | None:
        """What follows the turn's last mark in another rendering, of which it is the last turn with marks.

        Of a turn without marks, what follows its start.
        """
        drawn = self._draw(messages)
        if drawn is None:
            return None
        if turn.own:
            run = list(takewhile(lambda mark: mark.name in self._names[turn.i], reversed(drawn.marks)))
            last = [mark.place for mark in reversed(run) if _same([mark], turn.own[-1])]
            return drawn.text[last[0] :] if last else None
        header = self.text[turn.place : start]
        place = drawn.marks[-1].place if drawn.marks else 0
        if not _same(drawn.marks[-1:], turn.base) or not drawn.text.startswith(header, place):
            return None
        return drawn.text[place + len(header) :]

    def _check(self, turn: _Turn, start: int, end: int) -> None:
        """Whatever the turn says must stand in its span."""
        message, span = self._plain[turn.i], self.text[start:end]
        if any(name not in span for name in called(message)):
            raise self._unsettled(turn.i, "calls a tool, which the template does not write")
        lost = [text for text in said(message) if text.strip() and text.strip().splitlines()[-1] not in span]
        if turn.own[-1].place < start if turn.own else lost:
            raise self._unsettled(turn.i, "says something that the template does not write there")

    def _draw(self, messages: Sequence[Message], prompt: bool = False) -> Drawn | None:
        try:
            return Drawn.read(self._page(messages, prompt))
        except RowError:
            return None

    def _unsettled(self, i: int, why: str) -> DataError:
        return DataError(
            f"the chat template leaves no telling what the assistant generates: message {i} {why}. {WAYS_OUT}"
        )


class _Turn(NamedTuple):
    """One of the assistant's turns, among the marks of the whole conversation.

    Attributes:
        i: the message's number.
        base: the last mark before the turn; None at the beginning of the text.
        own: the turn's marks.
        limit: where the next mark stands, or the text ends.
    """

    i: int
    base: Mark | None
    own: list[Mark]
    limit: int

    @property
    def place(self) -> int:
        return self.base.place if self.base else 0


def _same(found: list[Mark], wanted: Mark | None) -> bool:
    """Whether one mark found is the one wanted, wherever it stands; none for None."""
    return [mark[1:] for mark in found] == ([wanted[1:]] if wanted else [])
