"""Language models that see: pictures with a text or a conversation, through the model's own processor each time that a batch is
made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, final

import torch

from scalekit.data.encoders import chat_template, image_chats
from scalekit.data.encoders.base import Encoder, Row, text_of
from scalekit.data.encoders.causal import Chat, refuse_beside_text, tokenizer_identity
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.data.encoders.expansion import places
from scalekit.data.encoders.images import opened
from scalekit.data.encoders.marks import Message, Span
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import ConfigError, DataError, NoLabelError, RowError
from scalekit.objectives.counts import IGNORED

_PLACES = ("image_token", "boi_token")
"""Where processors have the token that stands for a picture in a text that is not processed yet."""


@dataclass(frozen=True)
class _Written:
    """A row as a text: with its pictures, and the spans with loss (characters; None: everywhere).

    Attributes:
        special: whether the tokenizer adds its special tokens.
    """

    images: list[Any]
    text: str
    spans: list[Span] | None
    special: bool


@final
@dataclass(frozen=True)
class ImageTexts(Encoder):
    """Rows with ``messages``, ``prompt`` and ``completion``, or ``text``, and ``images`` or ``image``, to what the processor
    makes of them, and ``labels``: the text's tokens, or those that the assistant generates. No picture's token is learned.

    An image stands before a text, unless the text says where with the processor's own image token. For a conversation see
    `pictures.gathered`. Nothing is cut: what stands for the image cannot be.

    Args:
        processor: the model's, for images and text together.
        config: of the model.
        transform: of each image; its random draws depend on (seed, epoch, row) alone.
        limit: the longest row.
        loss_on: ``"all"`` tokens, or ``"completions"``.
        needs_pictures: whether each row must have one, as where all ranks must run all parts of the model.

    Raises:
        ConfigError: a processor for one of the two alone.
    """

    processor: Any
    config: Any
    transform: Callable[[Any], Any] | None
    limit: Limit
    loss_on: str = "all"
    needs_pictures: bool = False
    draws: ClassVar[bool] = True
    is_made_in_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (hasattr(self.processor, "image_processor") and hasattr(self.processor, "tokenizer")):
            raise ConfigError(
                f"image-text-to-text needs a processor of images and text together, and has {type(self.processor).__name__}: "
                "give `processor=`"
            )

    def identity(self) -> tuple[Any, ...]:
        return (
            "image texts",
            repr(self.processor),
            tokenizer_identity(self._tokenizer),
            self.loss_on,
            self.needs_pictures,
            self.limit,
        )

    def encode(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            written = self._written(row, None)
            if self.needs_pictures and not written.images:
                raise RowError(
                    "it has no picture, and on several processes such rows train beside others under strategy='ddp' alone"
                )
            labels = self.collate([{"row": written}])["labels"][0]
            most = self.limit.cut_at
            if most is not None and len(labels) > most:
                raise RowError(f"it has {len(labels)} tokens with its image's, more than sequence_length={most}")
            self.limit.check(len(labels))
            if bool((labels[1:] == IGNORED).all()):
                raise NoLabelError("it has nothing to learn: its answer is empty")
        return [{} for _ in rows]

    def draw(self, row: Row) -> Row:
        return {"row": self._written(row, self.transform)}

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        written: list[_Written] = [row["row"] for row in rows]
        batch = dict(self._processed(written))
        labels = [self._labels(each, ids, mask) for each, ids, mask in zip(
            written, batch["input_ids"], batch["attention_mask"], strict=True
        )]  # fmt: skip
        return {**batch, "labels": torch.stack(labels)}

    # -- rows as texts ----------------------------------------------------------------------------------------------

    def _written(self, row: Row, transform: Callable[[Any], Any] | None) -> _Written:
        beside = row.get("images") if row.get("images") is not None else row.get("image")
        beside = [] if beside is None else beside if isinstance(beside, list) else [beside]
        found = Chat.of(row) or self._asked(row)
        if found is not None:
            text, spans, images = self._said(found, beside)
            return _Written([_shown(each, transform) for each in images], text, spans, special=False)
        if self.loss_on == "completions":
            raise NoLabelError("'text' has no completion: give 'messages', or 'prompt' and 'completion'")
        if not beside:
            raise RowError("'image' is missing")
        images = [_shown(each, transform) for each in beside]
        return _Written(images, self._whole(text_of(row, "text"), len(images)), None, special=True)

    def _asked(self, row: Row) -> Chat | None:
        """A text and its completion, as a conversation."""
        refuse_beside_text(row)
        if "prompt" not in row:
            return None
        turns = [
            {"role": role, "content": text_of(row, column)}
            for role, column in (("user", "prompt"), ("assistant", "completion"))
        ]
        return Chat(turns, None, asks=1)

    def _said(self, found: Chat, beside: Sequence[Any]) -> tuple[str, list[Span] | None, list[Any]]:
        found.check_loss_on(self.loss_on)
        turns, images = image_chats.gathered(found.turns, beside, self._place_token(""))
        for each in (turns, image_chats.in_text(turns)):
            try:
                text, spans = replace(found, turns=each).written(self._tokenizer, self.loss_on)
            except RowError:
                if each is not turns:
                    raise
                continue
            if self._is_whole(text, turns, len(images)):
                return text, spans, images
        raise RowError("the chat template does not write all that the conversation says and shows")

    def _is_whole(self, text: str, turns: Sequence[Message], images: int) -> bool:
        """Whether a template wrote all texts, and one place for each picture."""
        parts = [part for turn in turns for part in turn["content"] or ()]
        token = self._place_token(text)
        return all(part.get("text", "").strip() in text for part in parts) and images == (
            text.count(token) if token else 0
        )

    def _whole(self, text: str, images: int) -> str:
        """The text with the images' places before it and its end behind it, where it has them not."""
        token = self._place_token("")
        start = "" if not token or token in text else token * images
        return f"{start}{text}{self._end}"

    # -- texts as tokens --------------------------------------------------------------------------------------------

    def _processed(self, rows: list[_Written]) -> Any:
        texts, images = [row.text for row in rows], [row.images for row in rows]
        options: dict[str, Any] = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        if not rows[0].special:
            options["add_special_tokens"] = False
        if not any(images):
            return self.processor(text=texts, **options)
        try:
            return self.processor(images=images, text=texts, **options)
        except (TypeError, ValueError, IndexError):  # it takes the images of all texts, and no lists of them
            return self.processor(images=[each for some in images for each in some], text=texts, **options)

    def _labels(self, row: _Written, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of a row of a batch, shape [tokens]."""
        made = ids[mask != 0].tolist()
        labels = self._placed(row, made)
        if labels is None:
            labels = [IGNORED if token in self._image_ids else token for token in made]
        found = torch.full_like(ids, IGNORED)
        found[mask != 0] = torch.tensor(labels, dtype=ids.dtype)
        return found

    def _placed(self, row: _Written, made: list[int]) -> list[int] | None:
        """The labels of the processor's tokens, by those of the text itself.

        None for a plain text that the processor writes otherwise, all of which is learned.

        Raises:
            DataError: a conversation that the processor writes otherwise.
        """
        encoded = self._tokenizer(row.text, add_special_tokens=row.special, return_offsets_mapping=True, verbose=False)
        text: list[int] = encoded["input_ids"]
        token = self._place_token(row.text)
        place = int(self._tokenizer.convert_tokens_to_ids(token)) if token else -1
        found = places(text, made, place, {*self._image_ids, place})
        if found is None and row.spans is None and row.special:
            return None
        learned = (
            text if row.spans is None else chat_template.labels(text, encoded["offset_mapping"], row.spans, IGNORED)
        )
        labels = [IGNORED] * len(made)
        if found is None or text.count(place) not in (0, len(row.images)):
            raise DataError(
                f"{type(self.processor).__name__} makes other tokens of a conversation than its tokenizer, or has "
                f"{text.count(place)} places for {len(row.images)} pictures: its answers cannot be told from the rest"
            )
        for label, first, last in zip(learned, *found, strict=True):
            if label != IGNORED and first >= 0:
                if first != last:
                    raise DataError(
                        "what is learned between two pictures cannot be told from what the processor writes there"
                    )
                labels[first] = label
        return labels

    @cached_property
    def _tokenizer(self) -> Any:
        """The processor's, with the processor's own chat template."""
        found = copy.copy(self.processor.tokenizer)
        found.chat_template = getattr(self.processor, "chat_template", None) or found.chat_template
        return found

    def _place_token(self, text: str) -> str:
        """What stands for a picture in a text that is not processed yet."""
        tokens = [str(token) for name in _PLACES if (token := getattr(self.processor, name, None)) is not None]
        return next((token for token in tokens if token in text), tokens[0] if tokens else "")

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


def _shown(image: Any, transform: Callable[[Any], Any] | None) -> Any:
    found = opened(image)
    return found if transform is None else transform(found)


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job."""
    shared = wanted.run_together
    return ImageTexts(wanted.processor(), wanted.config, wanted.transform, wanted.limit, wanted.loss_on, shared)
