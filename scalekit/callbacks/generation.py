"""What the model says to a few prompts, with each evaluation: samples.jsonl, and a table in Weights & Biases."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from scalekit.callbacks.metrics import read_records, write_records
from scalekit.data.encoders.truncation import Limit
from scalekit.distributed.rank_messages import RankMessages
from scalekit.distributed.world import World
from scalekit.errors import ConfigError, ModelError, PreemptedError, UnreachableRanksError
from scalekit.loggers.factory import tell
from scalekit.models.adapters import innermost
from scalekit.models.initialization import build_module
from scalekit.models.resolve import Model
from scalekit.strategies.base import BaseStrategy
from scalekit.utils.byproducts import attempt, in_a_line

_USUAL_NEW_TOKENS = 64
_PATIENCE_SECONDS = 30.0
_AGAIN = "Samples are tried again with the next evaluation"


@final
class GeneratedSamples(Callback):
    """Generates, greedily, after each evaluation.

    Args:
        settings: ``prompts``, each a text or a conversation, and ``max_new_tokens``.
        tokenizer: of the model.
        folder: the run's.
        world: the job's processes.
        resumed_step: the step that the job resumes from; lines after it are cut off.
    """

    def __init__(
        self, settings: Mapping[str, Any], tokenizer: Any, folder: Path, world: World, resumed_step: int = 0
    ) -> None:
        self._prompts, self._tokenizer = list(settings["prompts"]), tokenizer
        self._new_tokens = _new_tokens(settings)
        self._path, self._resumed_step = folder / "samples.jsonl", resumed_step
        self._world, self._board = world, RankMessages(world, "samples")
        self._times = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._board.open(trainer.strategy.broadcast(uuid.uuid4().hex))
        if trainer.is_global_zero and self._path.is_file():
            with attempt(str(self._path), _AGAIN):
                write_records(self._path, read_records(self._path, self._resumed_step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        if not (trainer.is_global_zero or strategy.is_shared):
            return
        with attempt("generate", _AGAIN, is_told=trainer.is_global_zero):
            rows = self._together(strategy) if strategy.is_shared and self._world.size > 1 else self._rows(strategy)
            if trainer.is_global_zero:
                self._publish(trainer, rows)

    def _rows(self, strategy: BaseStrategy) -> list[list[str]]:
        return [[self._shown(prompt), self._answer(prompt, strategy)] for prompt in self._prompts]

    def _together(self, strategy: BaseStrategy) -> list[list[str]]:
        """All ranks' answers to the prompts, where they run the model together.

        A rank that fails may have left the others in a collective, where nobody can reach them. So each says when it is
        through. One that has failed continues once all are, as where all fail for the same reason; else it ends the job.

        Raises:
            UnreachableRanksError: the job must not continue.
        """
        self._times += 1
        try:
            rows = self._rows(strategy)
        except PreemptedError:
            raise
        except Exception as error:
            self._board.write(str(self._times))
            if not self._all_are_through():
                raise UnreachableRanksError(
                    f"rank {self._world.rank} failed alone while all ranks generated samples, and the others wait for it: "
                    f"{in_a_line(error)}. Started again, the job resumes from its newest checkpoint; fewer or shorter prompts, "
                    "a smaller max_new_tokens or no `generate` avoid it"
                ) from error
            raise
        self._board.write(str(self._times))
        return rows

    def _all_are_through(self) -> bool:
        began = time.monotonic()
        while time.monotonic() - began < _PATIENCE_SECONDS:
            if sum(int(line) >= self._times for line in self._board.read().values()) == self._world.size:
                return True
            time.sleep(0.05)
        return False

    def _publish(self, trainer: Trainer, rows: list[list[str]]) -> None:
        strategy: Any = trainer.strategy
        with self._path.open("a") as file:
            for prompt, answer in rows:
                record = {"step": strategy.step, "prompt": prompt, "completion": answer}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        tell(trainer, "log_table", "samples", columns=["prompt", "completion"], data=rows, step=strategy.step)

    def _answer(self, prompt: Any, strategy: BaseStrategy) -> str:
        model: Any = strategy.lightning_module.model  # type: ignore[union-attr]
        was_training = model.training
        model.eval()
        try:
            return strategy.run(
                lambda: replied(
                    model,
                    self._tokenizer,
                    prompt,
                    self._new_tokens,
                    strategy.root_device,
                    synced_gpus=strategy.is_shared,
                )
            )
        finally:
            model.train(was_training)

    def _shown(self, prompt: Any) -> str:
        return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def replied(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    max_new_tokens: int,
    device: torch.device,
    tools: Any = None,
    **options: Any,
) -> str:
    """What a model writes behind a prompt, by the likeliest tokens, without special ones.

    Args:
        model: that generates text.
        tokenizer: its own.
        prompt: a text, or turns.
        max_new_tokens: at most so many.
        device: on which the model computes.
        tools: that may be called.
        options: further ones of its `generate`.
    """
    inputs = _encoded(prompt, tokenizer, tools).to(device)
    asked = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    made = model.generate(**asked, max_new_tokens=max_new_tokens, do_sample=False, **options)
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return str(tokenizer.decode(made[0, start:], skip_special_tokens=True))


def check_samples(settings: Mapping[str, Any], model: Model, tokenizer: Any) -> None:
    """What can be known of `generate` once the model and its tokenizer are known, before anything is trained.

    Args:
        settings: as for `Samples`.
        model: the job's, not built yet.
        tokenizer: of the model.

    Raises:
        ConfigError: the model generates no text, a prompt cannot be encoded, or is too long.
    """
    built: Any = None
    with suppress(ModelError):  # it cannot be built without weights; what is wrong with it shows when it generates
        built = model.source if isinstance(model.source, nn.Module) else build_module(model.source, here=False)
    if built is not None:
        _check_generates(built)
    config = getattr(built, "config", model.config)
    for number, prompt in enumerate(settings["prompts"], start=1):
        check_prompt(number, prompt, tokenizer, _new_tokens(settings), config)


def check_prompt(number: int, prompt: Any, tokenizer: Any, new_tokens: int, config: Any) -> None:
    """Whether a prompt can be encoded, and leaves room for what is written behind it.

    Raises:
        ConfigError: it cannot, or does not.
    """
    _check_length(number, _length(number, prompt, tokenizer), new_tokens, config)


def _new_tokens(settings: Mapping[str, Any]) -> int:
    return int(settings.get("max_new_tokens", _USUAL_NEW_TOKENS))


def _check_generates(model: Any) -> None:
    inner = innermost(model)
    if not hasattr(inner, "generate") or not getattr(inner, "can_generate", lambda: True)():
        raise ConfigError(
            f"generate is set, and {type(inner).__name__} generates no text: it has no head for that. Leave out `generate`, or "
            "train a causal-lm or seq2seq-lm model"
        )


def _length(number: int, prompt: Any, tokenizer: Any) -> int:
    """Of a prompt, in tokens."""
    if not isinstance(prompt, str) and getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"generate: prompt {number} is a conversation, and the tokenizer has no chat template: give the prompt as a text, "
            "or `processor=` with a template"
        )
    try:
        tokens = int(_encoded(prompt, tokenizer)["input_ids"].shape[1])
    except Exception as error:
        raise ConfigError(
            f"generate: prompt {number} ({_short(prompt)}) cannot be encoded: {in_a_line(error)}. A prompt is a text, or a "
            "list of turns with role and content that the chat template takes"
        ) from error
    if tokens == 0:
        raise ConfigError(f"generate: prompt {number} ({_short(prompt)}) has no tokens: give a text that has some")
    return tokens


def _check_length(number: int, tokens: int, new_tokens: int, config: Any) -> None:
    positions = Limit.of(None, config).positions if config is not None else None
    if positions is None:
        return
    apart = getattr(
        config, "is_encoder_decoder", False
    )  # the decoder has positions of its own, the first for its start
    needed = max(tokens, new_tokens + 1) if apart else tokens + new_tokens
    if needed > positions:
        how = f"the larger of its {tokens} tokens and 1 +" if apart else f"its {tokens} tokens and"
        fits = f"max_new_tokens={positions - 1 if apart else positions - tokens}, or a shorter prompt"
        raise ConfigError(
            f"generate: prompt {number} needs {needed} positions, {how} max_new_tokens={new_tokens}, and the model has "
            f"{positions}: give {fits if tokens < positions else 'a shorter prompt'}"
        )


def _encoded(prompt: Any, tokenizer: Any, tools: Any = None) -> Any:
    """``input_ids`` and ``attention_mask``, each [1, tokens]."""
    if isinstance(prompt, str):
        return tokenizer(prompt, return_tensors="pt")
    return tokenizer.apply_chat_template(
        list(prompt), tools=tools, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


def _short(prompt: Any) -> str:
    text = repr(prompt)
    return text if len(text) <= 60 else f"{text[:57]}..."
