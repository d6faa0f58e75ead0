"""What the model says to a few prompts, with each evaluation: samples.jsonl, and a table in Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from scalekit.engines.engine import Engine
from scalekit.tracking.metrics import read_records, write_records

_USUAL_NEW_TOKENS = 64


@final
class Samples(Callback):
    """Generates, greedily, after each evaluation.

    Args:
        settings: ``prompts``, each a text or a conversation, and ``max_new_tokens``.
        tokenizer: of the model.
        folder: the run's.
        resumed_step: the step that the job resumes from; lines after it are cut off.
    """

    def __init__(self, settings: Mapping[str, Any], tokenizer: Any, folder: Path, resumed_step: int = 0) -> None:
        self._prompts, self._tokenizer = list(settings["prompts"]), tokenizer
        self._new_tokens = settings.get("max_new_tokens", _USUAL_NEW_TOKENS)
        self._path, self._resumed_step = folder / "samples.jsonl", resumed_step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._path.is_file():
            write_records(self._path, read_records(self._path, self._resumed_step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        engine: Any = trainer.strategy
        if not (trainer.is_global_zero or engine.is_shared):
            return
        rows = [[self._shown(prompt), self._answer(prompt, engine)] for prompt in self._prompts]
        if not trainer.is_global_zero:
            return
        with self._path.open("a") as file:
            for prompt, answer in rows:
                record = {"step": trainer.global_step, "prompt": prompt, "completion": answer}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("samples", columns=["prompt", "completion"], data=rows, step=trainer.global_step)

    def _answer(self, prompt: Any, engine: Engine) -> str:
        model: Any = engine.lightning_module.model  # type: ignore[union-attr]
        if isinstance(prompt, str):
            inputs = self._tokenizer(prompt, return_tensors="pt")
        else:
            inputs = self._tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        inputs = inputs.to(engine.root_device)
        was_training = model.training
        model.eval()
        try:
            made = engine.run(
                lambda: model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=self._new_tokens,
                    do_sample=False,
                    synced_gpus=engine.is_shared,
                )
            )
        finally:
            model.train(was_training)
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        return str(self._tokenizer.decode(made[0, start:], skip_special_tokens=True))

    def _shown(self, prompt: Any) -> str:
        return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
