"""Packing: several documents in one row, so that no compute is spent on padding, and no document is cut to fill a row.

Documents are dealt to rows by best-fit decreasing (Johnson, "Near-optimal bin packing algorithms", MIT 1973; for training
texts: Ding et al., "Fewer Truncations Improve Language Modeling", arXiv 2404.10830): the longest first, each into the row
that it leaves the least space in. What keeps them apart in the model are position ids that restart at each document.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from scalekit.data.encoders.padding import padded
from scalekit.data.packing.bins import Numbers, best_fit
from scalekit.errors import ColumnError, EmptyDataError, RowError
from scalekit.objectives.counts import IGNORED

_VERSION = 1
_TOKENS_AT_ONCE = 1 << 24  # 64 MiB of them
_DOCUMENTS_AT_ONCE = 10_000
_NOT_PACKED = ("documents", "document_lengths", "position_ids", "attention_mask")


def pack(tokens: Any, capacity: int) -> Any:
    """Packs a Hugging Face data set of tokens, a document a row, into rows of several.

    The rows hold ``input_ids``, ``labels``, ``document_lengths`` and ``documents`` (their numbers in `tokens`), and of the
    other columns those that are lists as long as ``input_ids``. A document's first label is set to -100: a causal model
    would learn it from the document before. Rows are kept beside the tokens' own file, and taken from there the next time;
    of tokens in memory they are in memory.

    Args:
        tokens: with the columns ``input_ids`` and, unless they are the same, ``labels``.
        capacity: of a row, in tokens.

    Raises:
        ColumnError: no ``input_ids``, or ``labels`` that are no lists.
        ConfigError: a document is longer than a row.
        RowError: a document is empty, padded, or not as long as its labels.
        EmptyDataError: no documents.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    fingerprint = Hasher.hash((tokens._fingerprint, capacity, _VERSION))
    path = _kept_at(tokens, fingerprint)
    if path is None:
        memory = pa.BufferOutputStream()
        _write(tokens, capacity, fingerprint, stream=memory)
        return Dataset.from_buffer(memory.getvalue(), split=tokens.split)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            beside = path.with_suffix(".part")
            try:
                _write(tokens, capacity, fingerprint, path=str(beside))
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
    return Dataset.from_file(str(path), split=tokens.split)


def _kept_at(tokens: Any, fingerprint: str) -> Path | None:
    """In the tokens' folder, or in the cache where that folder cannot be written to; None for tokens in memory."""
    import datasets

    if not tokens.cache_files:
        return None
    folder = Path(tokens.cache_files[0]["filename"]).parent
    if not os.access(folder, os.W_OK):
        folder = Path(datasets.config.HF_DATASETS_CACHE)
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"cache-packed-{fingerprint}.arrow"


def _write(tokens: Any, capacity: int, fingerprint: str, **sink: Any) -> None:
    from datasets.arrow_writer import ArrowWriter
    from datasets.utils import tqdm

    lengths, columns = _survey(tokens)
    bins = best_fit(lengths, capacity)
    documents = tokens.with_format("arrow", columns=columns)
    at_once = max(_TOKENS_AT_ONCE // capacity, 1)
    with (
        ArrowWriter(fingerprint=fingerprint, **sink) as writer,
        tqdm(total=int(lengths.sum()), desc="Packing", unit="tokens", unit_scale=True, delay=2) as bar,
    ):
        for first in range(0, len(bins), at_once):
            bounds = bins.bounds[first : first + at_once + 1]
            numbers = bins.documents[bounds[0] : bounds[-1]]
            writer.write_table(_join(documents[numbers], numbers, lengths[numbers], bounds - bounds[0]))
            bar.update(int(lengths[numbers].sum()))
        writer.finalize()


def _survey(tokens: Any) -> tuple[Numbers, list[str]]:
    """The documents' lengths, and the columns that are packed."""
    lists = [name for name, feature in tokens.features.items() if _is_list_of_numbers(feature)]
    wanted = [name for name in ("input_ids", "labels") if name == "input_ids" or name in tokens.column_names]
    if not set(wanted) <= set(lists):
        raise ColumnError(
            f"only tokens can be packed: lists of numbers in the columns {', '.join(wanted)}. "
            f"There are: {', '.join(tokens.column_names)}"
        )
    if not len(tokens):
        raise EmptyDataError("there are no documents to pack")
    found = {name: list_lengths(tokens, name) for name in lists}
    lengths = found["input_ids"]
    differs = found.get("labels", lengths) != lengths
    if differs.any():
        document = int(np.argmax(differs))
        raise RowError(
            f"document {document} has {lengths[document]} tokens and {found['labels'][document]} labels: give one a token"
        )
    if "attention_mask" in lists:
        _check_mask(tokens)
    same = [name for name in lists if name not in _NOT_PACKED and np.array_equal(found[name], lengths)]
    return lengths, same


def _is_list_of_numbers(feature: Any) -> bool:
    import pyarrow as pa
    from datasets import LargeList, List, Value

    if not isinstance(feature, (List, LargeList)) or not isinstance(feature.feature, Value):
        return False
    kind = feature.feature.pa_type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def list_lengths(tokens: Any, name: str) -> Numbers:
    """Of the lists in a column of a Hugging Face data set, shape [rows]; 0 where there is none."""
    import pyarrow.compute as pc

    batches = tokens.with_format("arrow", columns=[name]).iter(_DOCUMENTS_AT_ONCE)
    parts = [pc.list_value_length(batch[name]).fill_null(0).to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def _check_mask(tokens: Any) -> None:
    """Padding within a document would be attended to: there is no mask once it is packed."""
    import pyarrow.compute as pc

    for batch in tokens.with_format("arrow", columns=["attention_mask"]).iter(_DOCUMENTS_AT_ONCE):
        if pc.min(pc.list_flatten(batch["attention_mask"])).as_py() == 0:
            raise RowError(
                "the documents are padded (an attention_mask holds 0): give them without padding to pack them"
            )


def _join(documents: Any, numbers: Numbers, lengths: Numbers, bounds: Numbers) -> Any:
    """A table of rows from a table of their documents, by new bounds on the same values."""
    import pyarrow as pa

    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = {name: documents[name].combine_chunks().flatten() for name in documents.column_names}
    labels = tokens.get("labels", tokens["input_ids"]).to_numpy()
    labels = labels.astype(np.promote_types(labels.dtype, np.int8))  # a copy, with a sign
    labels[starts[:-1]] = IGNORED
    tokens["labels"] = pa.array(labels)
    joined = {name: (starts[bounds], values) for name, values in tokens.items()}
    joined |= {
        "document_lengths": (bounds, pa.array(lengths.astype(np.int32))),
        "documents": (bounds, pa.array(numbers)),
    }
    return pa.table(
        {name: pa.ListArray.from_arrays(ends.astype(np.int32), values) for name, (ends, values) in joined.items()}
    )


@final
class Pack:
    """Collates packed rows: ``position_ids`` restart at each document, and by that alone a model keeps documents apart.

    The padding at a row's end is a document of its own. There is no ``attention_mask`` and no cache, since a transformers
    model looks for documents only where it has neither.

    Args:
        pad_id: the pad token's id.
        flat: puts the rows one after another, shape [1, tokens], without padding, as flash attention wants documents;
            otherwise they are padded to the longest, shape [rows, longest].
    """

    def __init__(self, pad_id: int, flat: bool = False) -> None:
        self._pad_id = pad_id
        self._flat = flat

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        lengths = [np.asarray(row["document_lengths"]) for row in rows]
        if not self._flat:
            longest = max(int(own.sum()) for own in lengths)
            lengths = [np.append(own, longest - own.sum()) for own in lengths]
        names = [name for name in rows[0] if name not in _NOT_PACKED]
        batch: dict[str, Any] = {name: self._column(name, [row[name] for row in rows]) for name in names}
        positions = _positions(np.concatenate(lengths))
        return batch | {"position_ids": positions.reshape(batch["input_ids"].shape), "use_cache": False}

    def _column(self, name: str, values: Sequence[Any]) -> Tensor:
        parts = [torch.as_tensor(value) for value in values]
        if self._flat:
            return torch.cat(parts)[None]
        return padded(name, parts, self._pad_id)


def _positions(lengths: Numbers) -> Tensor:
    """Each token's place in its document, shape [tokens]."""
    starts = np.cumsum(lengths) - lengths
    return torch.from_numpy(np.arange(lengths.sum()) - np.repeat(starts, lengths))
