"""What a run leaves beside its checkpoints: where it fails, the training continues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scalekit.errors import PreemptedError, UnreachableRanksError
from scalekit.utils.log import warn

_failing: set[str] = set()


def begin() -> None:
    """A job begins, in which nothing has failed yet."""
    _failing.clear()


@contextmanager
def attempt(what: str, then: str, is_told: bool = True) -> Iterator[None]:
    """Warns of an error in its block, and continues after it; once, until the same has worked again.

    Args:
        what: is done there, such as ``"the logger MyLogger"``.
        then: what becomes of it, as a sentence without its full stop.
        is_told: whether it is this process that warns.
    """
    try:
        yield
    except (PreemptedError, UnreachableRanksError):
        raise  # a signal, wherever it is noticed; and what nobody can continue from
    except Exception as error:
        if is_told and what not in _failing:
            warn(f"{what} failed: {in_a_line(error)}. The training continues. {then}")
        _failing.add(what)
    else:
        _failing.discard(what)


def in_a_line(error: BaseException) -> str:
    """An error, with its kind; those of others have several lines."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
