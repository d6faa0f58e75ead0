"""Where the tokens of a text are among those that a processor makes of it, which writes many in the place of a picture."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_Ids = Sequence[int]


def places(text: _Ids, made: _Ids, place: int, pictures: Collection[int]) -> tuple[list[int], list[int]] | None:
    """The position of each of a text's tokens: the first that it can have, and the last.

    Both are the same, but for what stands between two pictures and is written within one too, such as a line's end. What the
    processor puts in the place of a picture has a token of a picture in it.

    Args:
        text: the text's own tokens, with one for each picture, shape [tokens].
        made: the processor's, shape [more tokens].
        place: the token in the text that stands for a picture; -1 where it has none.
        pictures: the tokens that the processor writes for pictures.

    Returns:
        Two positions in `made` for each token of `text`, which for a picture's are -1; None where `made` holds other tokens.
    """
    first = _first(text, made, place, pictures)
    last = _first(text[::-1], made[::-1], place, pictures)
    if first is None or last is None:
        return None
    return first, [len(made) - 1 - position if position >= 0 else -1 for position in reversed(last)]


def _first(text: _Ids, made: _Ids, place: int, pictures: Collection[int]) -> list[int] | None:
    pieces = _pieces(text, place)
    if list(made[: len(pieces[0])]) != pieces[0]:
        return None
    found, end = list(range(len(pieces[0]))), len(pieces[0])
    for number, piece in enumerate(pieces[1:], start=2):
        is_last = number == len(pieces)
        starts = [len(made) - len(piece)] if is_last else range(end + 1, len(made) - len(piece) + 1)
        start = next((at for at in starts if _fits(piece, made, end, at, pictures)), None)
        if start is None:
            return None
        found += [-1, *range(start, start + len(piece))]
        end = start + len(piece)
    return found if end == len(made) else None


def _fits(piece: list[int], made: _Ids, end: int, at: int, pictures: Collection[int]) -> bool:
    """Whether a piece stands at a position, with a picture between it and the end of the piece before it."""
    return list(made[at : at + len(piece)]) == piece and any(token in pictures for token in made[end:at])


def _pieces(text: _Ids, place: int) -> list[list[int]]:
    """What stands between the pictures."""
    found: list[list[int]] = [[]]
    for token in text:
        if token == place:
            found.append([])
        else:
            found[-1].append(token)
    return found
