"""A trace made long from a few blocks is the trace of the whole model."""

from itertools import product

import numpy as np
import pytest
import torch

from scalekit.config.precision import dtypes_for
from scalekit.objectives.model_loss import ModelLoss
from scalekit.planning.profiling.profile import ProfiledModel, profile, resize
from scalekit.planning.profiling.tracing import Event


def build(kind: str, layers: int):
    import transformers

    sizes = {"vocab_size": 100, "num_hidden_layers": layers, "num_attention_heads": 4}
    if kind == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**sizes, hidden_size=32, intermediate_size=64, num_key_value_heads=2)
        )
    if kind == "bert":
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(**sizes, hidden_size=32, intermediate_size=64)
        )
    config = transformers.T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=layers, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def level(trace) -> np.ndarray:
    change = np.zeros(len(trace.kinds))
    for kind, sign in ((Event.ALLOCATE, 1), (Event.FREE, -1)):
        at = trace.kinds == kind
        change[at] = sign * trace.storage_bytes[trace.subjects[at]]
    return change.cumsum()


QUICK = {
    ("llama", "32-true", "selective"),
    ("t5", "bf16-mixed", "full"),
    ("llama", "bf16-mixed", "full"),
    ("llama", "32-true", "none"),
    ("bert", "32-true", "full"),
}
"""The encoder-decoder with all that may go wrong together; of the others, each precision with and without recomputation."""

CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.long)
    for case in product(("llama", "bert", "t5"), ("32-true", "bf16-mixed"), ("none", "selective", "full"))
]


@pytest.mark.parametrize(("kind", "precision", "recompute"), CASES)
def test_a_long_trace_is_the_whole_models(kind, precision, recompute):
    labels = torch.zeros(2, dtype=torch.long) if kind == "bert" else torch.ones(2, 16, dtype=torch.long)
    batch = {"input_ids": torch.ones(2, 16, dtype=torch.long), "labels": labels}
    subject = ProfiledModel(kind, lambda: build(kind, 6), ModelLoss().mean_loss, resize(batch, 2), 16)
    model = profile(subject, dtypes_for(precision), like_a_gpu=False)
    way = (2, recompute, torch.float32, False)
    short, whole = model._run(*way, whole=False), model._run(*way, whole=True)
    assert np.array_equal(short.kinds, whole.kinds)
    assert level(short).max() == level(whole).max()
    assert level(short)[-1] == level(whole)[-1] == 0
    assert short.flops.sum() == whole.flops.sum()
    assert sorted(p.name for p in short.parameters) == sorted(p.name for p in whole.parameters)
    assert [short.modules[b] for b in short.blocks] == [whole.modules[b] for b in whole.blocks]
    came = [[t.parameters[i].name for i in t.subjects[t.kinds == Event.GRADIENT]] for t in (short, whole)]
    assert came[0] == came[1]


def test_blocks_that_differ_are_all_traced():
    from torch import nn

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))

        def forward(self, x):
            for place, layer in enumerate(self.layers):
                x = layer(x).relu() if place % 2 else layer(x)
            return x.sum()

    subject = ProfiledModel("uneven", Uneven, lambda m, b: m(b["x"]), resize({"x": torch.zeros(2, 16)}, 2))
    trace = profile(subject, dtypes_for("32-true"), like_a_gpu=False).at(2, "none", torch.float32)
    assert len(trace.blocks) == 8
    assert trace.flops.sum() == (8 + 7 + 8) * 2 * 2 * 16 * 16
