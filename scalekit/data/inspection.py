"""`scalekit inspect`: rows as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalekit.data.lengths import padding_share
from scalekit.data.prepared import Rows
from scalekit.errors import ConfigError, DependencyError
from scalekit.objectives.counts import IGNORED

_HUES = (36, 33, 35, 32, 34, 31)
_BARS, _BAR_WIDTH = 12, 40
_SHOWN_VALUES = 6
_LOOKED_AT = 1000


def inspection(rows: Rows, count: int, colours: bool, seed: int = 0) -> Iterator[str]:
    """Lines for a terminal: what is known of the data, a histogram of lengths, and some training rows.

    Args:
        rows: a job's.
        count: how many rows are shown.
        colours: a document a colour, and tokens without loss faint; otherwise tokens with loss stand in [brackets].
        seed: of the job.
    """
    yield from known(rows)
    if rows.lengths is not None:
        yield from _lengths(rows, seed)
    for place in range(min(count, len(rows.train))):
        yield ""
        yield from _row(rows, place, colours)
    if colours and rows.lengths is not None:
        yield ""
        yield f"faint: no loss; a colour a document{'' if rows.packed else ', here one a row'}"


def known(rows: Rows) -> Iterator[str]:
    """Lines of what is known of the data as a whole."""
    for name, value in rows.summary().items():
        if value not in (None, 0):
            yield f"{name:17} {', '.join(value) if isinstance(value, list) else value}"
    yield from rows.remarks


def plot(rows: Rows, path: str) -> None:
    """Draws the histogram of lengths.

    Raises:
        DependencyError: matplotlib is missing.
        ConfigError: the rows have no lengths.
    """
    if rows.lengths is None:
        raise ConfigError("the rows are no tokens, so there are no lengths to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("matplotlib", "plot", "--plot") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(rows.lengths.tokens, bins=60, color="#4878a8")
    for share, style in ((50, "-"), (95, "--")):
        length = float(np.percentile(rows.lengths.tokens, share))
        axes.axvline(length, color="#333333", linestyle=style, linewidth=1, label=f"{share}% are up to {length:.0f}")
    axes.set_xlabel("tokens a row")
    axes.set_ylabel("rows")
    axes.set_title(f"{len(rows.lengths.tokens):,} rows, {rows.lengths.total:,} tokens")
    axes.legend()
    figure.savefig(path, dpi=150)


def _lengths(rows: Rows, seed: int) -> Iterator[str]:
    lengths = rows.lengths
    if lengths is None:
        return
    yield f"padding           {padding_share(lengths.tokens, seed):.1%} of a batch of 8 rows that are not packed"
    if rows.packed:
        made = [rows.train[place] for place in range(min(_LOOKED_AT, len(rows.train)))]
        longest = max(len(row["input_ids"]) for row in made)
        useful = sum(len(row["input_ids"]) for row in made) / (len(made) * longest)
        yield f"                  {1 - useful:.1%} of a batch of packed rows"
    yield "tokens a row"
    yield from _histogram(lengths.tokens)


def _histogram(lengths: NDArray[np.int64]) -> Iterator[str]:
    counts, edges = np.histogram(lengths, bins=min(_BARS, int(np.ptp(lengths)) + 1))
    for number, start, end in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * -(-int(number) * _BAR_WIDTH // int(counts.max()))
        yield f"{start:7.0f} to {end:<7.0f} {bar} {number:,}"


def _row(rows: Rows, place: int, colours: bool) -> Iterator[str]:
    row = _seen(rows, place)
    if not isinstance(row, dict) or "input_ids" not in row or not hasattr(rows.pipeline.processor, "decode"):
        yield f"row {place}: {_shown(row)}"
        return
    ids = [int(token) for token in row["input_ids"]]
    labels = row.get("labels", ids)
    per_token = hasattr(labels, "__len__") and len(labels) == len(ids)
    learned = [int(label) != IGNORED for label in labels] if per_token else [True] * len(ids)
    lengths = row.get("document_lengths") or [len(ids)]
    beside = {name: value for name, value in row.items() if name != "input_ids" and not _is_per_token(value, len(ids))}
    beside.pop("document_lengths", None)
    counted = f", {sum(learned)} with loss" if per_token else ""
    yield f"row {place}: {len(ids)} tokens{counted}" + (f"; {_shown(beside)}" if beside else "")
    yield "".join(
        _coloured(rows.pipeline.processor, ids, learned, lengths)
        if colours
        else _marked(rows.pipeline.processor, ids, learned)
    )


def _seen(rows: Rows, place: int) -> Any:
    """A row; where tokens are made with the batch, as a batch of it has it."""
    row = rows.train[place]
    encoder = rows.pipeline.encoder
    if encoder is None or not encoder.is_made_in_batches:
        return row
    return {name: value[0] for name, value in rows.collate([row]).items()}


def _coloured(tokenizer: Any, ids: list[int], learned: list[bool], lengths: list[int]) -> Iterator[str]:
    documents = np.repeat(np.arange(len(lengths)), lengths)
    for token, counts, document in zip(ids, learned, documents, strict=True):
        yield f"\x1b[{'1' if counts else '2'};{_HUES[document % len(_HUES)]}m{tokenizer.decode([token])}\x1b[0m"


def _marked(tokenizer: Any, ids: list[int], learned: list[bool]) -> Iterator[str]:
    inside = False
    for token, counts in zip(ids, learned, strict=True):
        if counts != inside:
            yield "[" if counts else "]"
        inside = counts
        yield tokenizer.decode([token])
    yield "]" if inside else ""


def _is_per_token(value: Any, length: int) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str) and len(value) == length


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if hasattr(value, "shape") and value.shape:
        return f"{tuple(value.shape)} from {float(value.min()):.3g} to {float(value.max()):.3g}"
    if isinstance(value, (list, tuple)) and len(value) > _SHOWN_VALUES:
        return f"[{', '.join(map(str, value[:_SHOWN_VALUES]))}, ...]"
    return str(value)
