"""The models and data that every strategy must train to the same numbers, and the plain loop that says which.

`reference` is PyTorch alone: nothing of ScaleKit is in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from scalekit.data.sampling.permutation import shuffled

SEED = 3
ROWS = 50
GLOBAL_BATCH = 16
STEPS = 10
"""Two epochs and a half, and each ends with a batch of 2 rows."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
CLIP = 0.15

# Adam divides a gradient by its own running size, so where a gradient is nothing but the rounding of a sum (the biases of
# attention keys, say, whose true gradient is 0) it moves by the learning rate in a direction that rounding decides. With the
# usual eps of 1e-8 no two orders of summing agree there; with this one the plain loop is comparable with itself.
EPS = 1e-6
VOCABULARY = 160
"""Five times the hidden size, so that losses are computed of hidden states, in parts."""

Rows = list[dict[str, Any]]


def factor(step: int) -> float:
    """A schedule that moves at every step, so that a step counted twice shows."""
    return 1.0 / (1.0 + 0.1 * step)


def token_rows(labels_of: Callable[[np.random.Generator, int], Any]) -> Rows:
    random = np.random.default_rng(11)
    rows: Rows = []
    for _ in range(ROWS):
        length = int(random.integers(4, 24))
        rows.append({"input_ids": random.integers(2, VOCABULARY, length).tolist(), "labels": labels_of(random, length)})
    return rows


def causal_rows() -> Rows:
    """Unequal lengths, with a prompt of its own length masked in each row."""
    rows = token_rows(lambda random, length: int(random.integers(1, length - 1)))
    for row in rows:
        masked = row["labels"]
        row["labels"] = [-100] * masked + row["input_ids"][masked:]
    return rows


def class_rows() -> Rows:
    return token_rows(lambda random, length: int(random.integers(0, 3)))


def translation_rows() -> Rows:
    return token_rows(lambda random, length: random.integers(2, VOCABULARY, int(random.integers(2, 12))).tolist())


def number_rows() -> Rows:
    random = np.random.default_rng(12)
    return [{"x": random.normal(size=6).tolist(), "y": random.normal(size=2).tolist()} for _ in range(ROWS)]


def collate(rows: Rows) -> dict[str, Tensor]:
    """Pads on the right; written here again, so that the product's own collator is compared with something."""
    if "x" in rows[0]:
        return {name: torch.tensor([row[name] for row in rows]) for name in ("x", "y")}
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    stacked = torch.stack(labels) if labels[0].ndim == 0 else pad_sequence(labels, True, -100)
    mask = pad_sequence([torch.ones_like(i) for i in ids], True, 0)
    return {"input_ids": pad_sequence(ids, True, 0), "labels": stacked, "attention_mask": mask}


def llama(tied: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def gpt2(dropout: float = 0.0) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    return GPT2LMHeadModel(config)


def gpt2_with_dropout() -> nn.Module:
    return gpt2(dropout=0.2)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        initializer_factor=0.3,  # at 1.0 a plain loop in micro-batches of 1 and one in whole batches part by 3e-5 at a ReLU
    )
    return T5ForConditionalGeneration(config)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))


class Attended(nn.Module):
    """torch's own attention, which reads the weights of a layer within it without running that layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, x, x, need_weights=False)[0])


class Attention(nn.Module):
    """Takes six numbers for six tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 16), nn.Linear(6 * 16, 2)
        self.blocks = nn.ModuleList(Attended() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x[..., None])
        for block in self.blocks:
            found = block(found)
        return self.last(found.flatten(1))


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        build: makes the model; seeded by who calls it.
        rows: makes the data.
        is_lightning: whether the user brings a LightningModule around the model.
    """

    build: Callable[[], nn.Module]
    rows: Callable[[], Rows]
    is_lightning: bool = False

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if "x" in batch:
            return nn.functional.mse_loss(model(batch["x"]), batch["y"])
        return model(**batch).loss


CASES = {
    "llama-tied": Case(lambda: llama(tied=True), causal_rows),
    "llama-untied": Case(lambda: llama(tied=False), causal_rows),
    "gpt2": Case(gpt2, causal_rows),
    "bert": Case(bert, class_rows),
    "t5": Case(t5, translation_rows),
    "attention": Case(Attention, number_rows),
    "mlp": Case(mlp, number_rows),
    "lightning": Case(mlp, number_rows, is_lightning=True),
}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        eps=EPS,
    )


@dataclass(frozen=True)
class Trained:
    """What a training came to: loss and gradient norm of each step, and the parameters before and after."""

    losses: list[float]
    norms: list[float]
    initial: dict[str, Tensor]
    final: dict[str, Tensor]


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def reference(case: Case) -> Trained:
    """Forward, loss, backward, clip, step on one process: a whole global batch at once."""
    torch.manual_seed(SEED)
    model = case.build().train()
    initial, optimizer, rows = parameters_of(model), optimizer_of(model), case.rows()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses, norms = [], []
    epoch = 0
    while len(losses) < STEPS:
        order = shuffled(np.arange(ROWS), ROWS, SEED, epoch)
        for start in range(0, ROWS, GLOBAL_BATCH):
            loss = case.loss(model, collate([rows[i] for i in order[start : start + GLOBAL_BATCH]]))
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) == STEPS:
                break
        epoch += 1
    return Trained(losses, norms, initial, parameters_of(model))
