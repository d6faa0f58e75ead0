"""A job that trains an adapter, with a norm that PEFT saves as a whole, and one that is trained without PEFT's knowing."""

from contextlib import suppress
from pathlib import Path

import peft
import torch
from torch import nn

import scalekit
from tests.support import parity_cases as parity
from tests.support.legs import EndedError, Ends


def adapter() -> nn.Module:
    """GPT-2 with LoRA, a norm that PEFT saves as a whole, and one that is trained without PEFT's knowing."""
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], modules_to_save=["ln_f"], fan_in_fan_out=True)
    model = peft.get_peft_model(parity.gpt2(), config)
    model.get_submodule("base_model.model.transformer.h.0.ln_1").requires_grad_(True)
    return model


def train(strategy: str, folder: Path, until: int) -> None:
    """Four steps, or as many as `until` says."""
    with suppress(EndedError):
        scalekit.fit(
            adapter,
            torch.utils.data.DataLoader(parity.causal_rows(), collate_fn=parity.collate, shuffle=True),
            strategy=strategy,
            precision="32-true",
            global_batch_size=8,
            micro_batch_size=4,
            max_steps=4,
            learning_rate=1e-2,
            optimizer_options={"eps": parity.EPS},
            checkpoint_every=2,
            seed=parity.SEED,
            callbacks=[Ends(until)],
            output_dir=str(folder),
        )
