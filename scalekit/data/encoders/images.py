"""Images with labels: decoded, transformed and processed each time that a row is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch

from scalekit.data.encoders.base import Encoder, Row
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.errors import RowError
from scalekit.models.labels import Labels


@final
@dataclass(frozen=True)
class Images(Encoder):
    """Rows with ``image`` and ``label`` to ``pixel_values``, shape [3, height, width], and a label.

    Args:
        processor: the model's image processor, or None.
        transform: of the image, such as torchvision's v2 transforms; its random draws depend on (seed, epoch, row) alone.
        labels: what a label is.
        column: with the label.
    """

    processor: Any
    transform: Callable[[Any], Any] | None
    labels: Labels
    column: str = "label"
    draws: ClassVar[bool] = True

    def identity(self) -> tuple[Any, ...]:
        return "images", self.labels.identity(), self.column

    def encode(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            opened(row.get("image"))
            self.labels.encode(row[self.column])
        return [{} for _ in rows]

    def draw(self, row: Row) -> Row:
        image = opened(row.get("image"))
        if self.transform is not None:
            image = self.transform(image)
        if self.processor is not None:
            pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        else:
            pixels = image if isinstance(image, torch.Tensor) else _pixels(image)
        return {"pixel_values": pixels, "labels": self.labels.encode(row[self.column])}

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        shapes = {tuple(row["pixel_values"].shape) for row in rows}
        if len(shapes) > 1:
            raise RowError(f"images of several sizes {sorted(shapes)} make no batch: resize them in `transform`")
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }


def opened(value: Any) -> Any:
    """An image, whole, upright, in colours.

    Args:
        value: Pillow's, a path, or a mapping of ``bytes`` or ``path``.

    Raises:
        RowError: there is none, or it is cut short.
    """
    from io import BytesIO

    from PIL import Image, ImageOps

    if value is None:
        raise RowError("'image' is missing")
    try:
        if isinstance(value, str):
            value = Image.open(value)
        elif isinstance(value, dict):
            value = Image.open(BytesIO(value["bytes"]) if value.get("bytes") else value["path"])
        return _eight_bits(ImageOps.exif_transpose(value)).convert("RGB")
    except Exception as error:  # Pillow raises whatever its decoders do
        raise RowError(f"its image cannot be read: {error}") from error


def _eight_bits(image: Any) -> Any:
    """Of 16 bits, which Pillow would cut off at 255, the upper ones."""
    if not image.mode.startswith("I"):
        return image
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def _pixels(image: Any) -> torch.Tensor:
    """An image as numbers from 0 to 1, shape [3, height, width]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job."""
    return Images(wanted.processor(), wanted.transform, wanted.labels(parts), wanted.column)
