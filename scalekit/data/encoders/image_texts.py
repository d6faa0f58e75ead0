"""Language models that see: an image and its text, through the model's own processor each time that a batch is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

import torch

from scalekit.data.encoders.encoder import Encoder, Row, text_of
from scalekit.data.encoders.images import opened
from scalekit.data.encoders.limit import Limit
from scalekit.errors import ConfigError, RowError
from scalekit.objectives.counts import IGNORED


@final
@dataclass(frozen=True)
class ImageTexts(Encoder):
    """Rows with ``image`` and ``text`` to what the processor makes of both, and ``labels``: the text's tokens.

    The image stands before the text, unless the text says where with the processor's own image token. Nothing is cut: what
    stands for the image cannot be.

    Args:
        processor: the model's, for images and text together.
        config: of the model.
        transform: of the image; its random draws depend on (seed, epoch, row) alone.
        limit: the longest row.

    Raises:
        ConfigError: a processor for one of the two alone.
    """

    processor: Any
    config: Any
    transform: Callable[[Any], Any] | None
    limit: Limit
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (hasattr(self.processor, "image_processor") and hasattr(self.processor, "tokenizer")):
            raise ConfigError(
                f"image-text-to-text needs a processor of images and text together, and has {type(self.processor).__name__}: "
                "give `processor=`"
            )

    def identity(self) -> tuple[Any, ...]:
        return "image texts", repr(self.processor), self.limit

    def encode(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            ids = self._processed([opened(row)], [text_of(row, "text")])["input_ids"][0]
            most = self.limit.cut_at
            if most is not None and len(ids) > most:
                raise RowError(f"it has {len(ids)} tokens with its image's, more than sequence_length={most}")
            self.limit.check(len(ids))
        return [{} for _ in rows]

    def draw(self, row: Row) -> Row:
        image = opened(row)
        return {"image": image if self.transform is None else self.transform(image), "text": row["text"]}

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        batch = dict(self._processed([row["image"] for row in rows], [row["text"] for row in rows]))
        ids = batch["input_ids"]
        unlearned = torch.isin(ids, torch.tensor(self._image_ids, dtype=ids.dtype)) | (batch["attention_mask"] == 0)
        return {**batch, "labels": ids.masked_fill(unlearned, IGNORED)}

    def _processed(self, images: list[Any], texts: list[str]) -> Any:
        made = [self._whole(text) for text in texts]
        options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        try:
            return self.processor(images=[[image] for image in images], text=made, **options)
        except (TypeError, ValueError):  # it takes one image for each text, and no lists of them
            return self.processor(images=images, text=made, **options)

    def _whole(self, text: str) -> str:
        """The text with the image's place before it and its end behind it, where it has them not."""
        token = getattr(self.processor, "image_token", None)
        start = "" if token is None or str(token) in text else str(token)
        return f"{start}{text}{self._end}"

    @cached_property
    def _end(self) -> str:
        """What ends a text that the tokenizer does not end by itself."""
        tokenizer = self.processor.tokenizer
        last = tokenizer("a")["input_ids"][-1]
        ended = tokenizer.eos_token is None or last in (tokenizer.eos_token_id, tokenizer.sep_token_id)
        return "" if ended else str(tokenizer.eos_token)

    @cached_property
    def _image_ids(self) -> list[int]:
        """The tokens that stand for an image."""
        names = ("image_token_id", "image_token_index")
        found = (getattr(owner, name, None) for owner in (self.config, self.processor) for name in names)
        return sorted({int(each) for each in found if each is not None})
