"""Sounds with labels: decoded, resampled, transformed and processed each time that a row is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from scalekit.data.encoders.base import Encoder, Row
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.errors import ColumnError, DependencyError, RowError
from scalekit.models.labels import Classes, Labels


@final
@dataclass(frozen=True)
class Sounds(Encoder):
    """Rows with ``audio`` and ``label`` to ``input_values``, shape [..., time], padded with 0 to the longest, and a label.

    Args:
        processor: the model's feature extractor, or None.
        transform: of the wave, shape [samples], such as torchaudio's; its random draws depend on (seed, epoch, row) alone.
        sampling_rate: in Hz, to which all are resampled; the processor's, or each sound's own, by default.
        labels: what a label is.
        column: with the label.
    """

    processor: Any
    transform: Callable[[Any], Any] | None
    sampling_rate: int | None
    labels: Labels
    column: str = "label"
    draws: ClassVar[bool] = True

    def identity(self) -> tuple[Any, ...]:
        return "sounds", self.labels.identity(), self.column

    def encode(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            wave, _ = _heard(row)
            if not bool(wave.abs().max() > 0):
                raise RowError("its audio is silent: every sample is 0")
            self.labels.encode(row[self.column])
        return [{} for _ in rows]

    def draw(self, row: Row) -> Row:
        wave, rate = _heard(row)
        wanted = self.sampling_rate or getattr(self.processor, "sampling_rate", None) or rate
        if rate != wanted:
            from torchaudio.functional import resample

            wave = resample(wave, rate, wanted)
        if self.transform is not None:
            wave = self.transform(wave)
        made: dict[str, Any] = {"input_values": wave}
        if self.processor is not None:
            made = {
                name: values[0]
                for name, values in self.processor(np.asarray(wave), sampling_rate=wanted, return_tensors="pt").items()
            }
        return {**made, "labels": self.labels.encode(row[self.column])}

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        batch = {name: _padded([row[name] for row in rows]) for name in rows[0] if name != "labels"}
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def _heard(row: Row) -> tuple[Tensor, int]:
    """A sound's wave in one channel, shape [samples], and its sampling rate in Hz.

    Raises:
        RowError: there is none, or it cannot be decoded.
        DependencyError: the decoder is missing.
    """
    from io import BytesIO

    value = row.get("audio")
    if isinstance(value, dict) and value.get("array") is not None:
        wave = torch.as_tensor(np.asarray(value["array"]), dtype=torch.float32)
        if wave.ndim == 2:  # channels, which are fewer than samples
            wave = wave.mean(dim=int(np.argmin(wave.shape)))
        if wave.ndim != 1 or not len(wave):
            raise RowError(f"its audio has the shape {tuple(wave.shape)}, and should be samples, or channels of them")
        return wave, int(value["sampling_rate"])
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise RowError("'audio' is missing")
    try:
        import soundfile
    except ImportError as error:
        raise DependencyError("soundfile", "audio", "decoding sounds") from error
    try:
        samples, rate = soundfile.read(
            BytesIO(value["bytes"]) if value.get("bytes") else value["path"], dtype="float32", always_2d=True
        )
    except Exception as error:  # libsndfile's own, or the file system's
        raise RowError(f"its audio cannot be read: {error}") from error
    if not len(samples):
        raise RowError("its audio has no samples")
    return torch.from_numpy(samples).mean(dim=1), int(rate)


def _padded(values: list[Tensor]) -> Tensor:
    """Stacked, shape [batch, ...]; shorter ones end with 0 in the one dimension in which they differ, which is time."""
    sizes = np.array([value.shape for value in values])
    differing = np.flatnonzero((sizes != sizes[0]).any(axis=0))
    if len(differing) > 1:
        raise RowError(f"sounds of the shapes {sizes[:2].tolist()} make no batch: they should differ in time alone")
    if not len(differing):
        return torch.stack(values)
    time = int(differing[0])
    padded = torch.nn.utils.rnn.pad_sequence([value.movedim(time, 0) for value in values], batch_first=True)
    return padded.movedim(1, time + 1)


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job.

    Raises:
        ColumnError: labels of another kind than one class a row, without a loss.
    """
    labels = wanted.labels(parts)
    if labels.problem != Classes.problem and wanted.config is not None and not wanted.has_loss:
        raise ColumnError(
            f"the column {wanted.column!r} holds labels for {labels.problem}, and models of sounds learn one class a row where "
            "there is no `loss=`: give one, such as nn.MSELoss()"
        )
    cast_to = ((getattr(part, "features", None) or {}).get("audio") for part in parts)
    rates = (getattr(feature, "sampling_rate", None) for feature in cast_to)
    rate = wanted.sampling_rate or next((each for each in rates if each), None)
    return Sounds(wanted.processor(), wanted.transform, rate, labels, wanted.column)
