"""Packed documents are to a model what they are alone; a model that mixes them is refused."""

from functools import cache, partial

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM

from scalekit.data.packing.isolation import can_pack, check_isolation
from scalekit.data.packing.packing import Pack, pack
from scalekit.errors import LeakError
from scalekit.objectives.counts import IGNORED, Entries
from scalekit.objectives.model_loss import ModelLoss

VOCABULARY = 64
CAPACITY = 24
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 1}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
CONFIGS = {
    "Llama": GROUPED,
    "Qwen3": GROUPED | {"head_dim": 16},
    "GPT2": GPT2,
    "Gemma3Text": GROUPED
    | {"head_dim": 16, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "Mistral": GROUPED | {"sliding_window": 5},
    "GPTNeoX": SIZES,
    "Mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}
ATTENTIONS = ("eager", "sdpa", "flex_attention")


def build(name: str, attention: str = "eager", **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.fixture(autouse=True)
def uncompiled():
    """Flex attention compiles for a minute on CPU, and for some shapes into C++ that no compiler takes."""
    with torch.compiler.set_stance("force_eager"):
        yield


@cache
def model_of(name: str, attention: str):
    if (name, attention) == ("GPT2", "flex_attention"):
        pytest.skip("transformers has no flex attention for GPT-2")
    return build(name, attention, **CONFIGS[name])


def tokens() -> Dataset:
    """Documents of which some fill a row by themselves; a third of the labels is masked."""
    draw = torch.Generator().manual_seed(1)
    lists = [torch.randint(VOCABULARY, (n,), generator=draw).tolist() for n in (7, 5, 24, 3, 9, 10, 1, 13)]
    labels = [[IGNORED if i % 3 == 2 else token for i, token in enumerate(ids)] for ids in lists]
    return Dataset.from_dict({"input_ids": lists, "labels": labels})


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_each_document_alone(name, attention):
    model, documents = model_of(name, attention), tokens()
    packed = list(pack(documents, CAPACITY))
    assert max(len(row["documents"]) for row in packed) > 2
    alone = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in documents["input_ids"]]
    padded = model(**Pack(0)(packed)).logits
    flat = model(**Pack(0, flat=True)(packed)).logits[0].split([len(row["input_ids"]) for row in packed])
    for row, *found in zip(packed, padded, flat, strict=True):
        for logits in found:
            parts = logits[: len(row["input_ids"])].split(row["document_lengths"])
            for document, part in zip(row["documents"], parts, strict=True):
                assert_close(part, alone[document])


def gradients(model) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_the_documents_alone(name, attention):
    if attention == "flex_attention":
        pytest.skip("PyTorch's flex attention has no backward pass on CPU")
    model, documents = model_of(name, attention), tokens()
    objective = ModelLoss(Entries("labels", shifted=True))
    total = 0.0
    for row in documents:
        if len(row["input_ids"]) > 1:
            batch = {key: torch.tensor([value]) for key, value in row.items()} | {"use_cache": False}
            loss = objective.mean_loss(model, batch) * objective.items(batch, 1)
            loss.backward()
            total += loss.item()
    alone = gradients(model)

    for flat in (False, True):
        batch = Pack(0, flat)(list(pack(documents, CAPACITY)))
        loss = objective.mean_loss(model, batch) * objective.items(batch, 1)
        loss.backward()
        assert_close(loss.detach(), torch.tensor(total))
        assert_close(gradients(model), alone)


def check(model, exact: bool = True, flat: bool = False, **overrides) -> None:
    check_isolation(lambda batch: model(**batch | overrides).logits, VOCABULARY, "cpu", exact, flat)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_keeps_documents_apart_passes(name, attention):
    model = model_of(name, attention)
    assert can_pack(model) is None
    check(model)
    check(model, flat=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_rounding_is_no_leak(name):
    check(build(name, "sdpa", **CONFIGS[name]).bfloat16(), exact=False)


def test_rounding_may_differ_with_the_place_in_a_row():
    model = model_of("Llama", "sdpa")

    def forward(batch):
        places = torch.arange(batch["input_ids"].shape[1])
        return model(**batch).logits * (1 + 1e-3 * (places > 8)[:, None])

    check_isolation(forward, VOCABULARY, "cpu", exact=False)
    with pytest.raises(LeakError, match="are not those of the document alone"):
        check_isolation(forward, VOCABULARY, "cpu", exact=True)


def test_rounding_is_measured_where_nothing_can_leak():
    model = model_of("Llama", "sdpa")

    def forward(batch, change):
        width = batch["input_ids"].shape[1]
        return model(**batch).logits * (1 + change * (width > 9))

    check_isolation(partial(forward, change=0.1), VOCABULARY, "cpu", exact=False)
    with pytest.raises(LeakError, match="cannot be told"):
        check_isolation(partial(forward, change=0.5), VOCABULARY, "cpu", exact=False)


def test_a_cache_or_a_mask_hides_the_documents_and_is_refused():
    model = model_of("Llama", "sdpa")
    for flat in (False, True):
        with pytest.raises(LeakError, match=r"change with the document before it \(leak ratio .* Set packing=False"):
            check(model, flat=flat, use_cache=True)
    with pytest.raises(LeakError, match="change with the document before it"):
        check_isolation(
            lambda batch: model(**batch, attention_mask=torch.ones_like(batch["input_ids"])).logits,
            VOCABULARY,
            "cpu",
            True,
        )


LEAKING = {
    "Mamba": SIZES | {"state_size": 8},  # carries a state
    "Bloom": GPT2,  # takes no position ids
    "OPT": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32},  # takes position ids, and masks nothing by them
    "GptOss": GROUPED | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},  # the same
    "Lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},  # a convolution reaches back over three tokens
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LEAKING)
def test_a_model_that_mixes_documents_is_refused(name, dtype):
    with pytest.raises(LeakError, match="change with the document before it"):
        check(build(name, **LEAKING[name]).to(dtype), exact=dtype == torch.float32)


def test_positions_that_do_not_restart_are_refused():
    model = model_of("GPT2", "sdpa")

    def forward(batch):
        document = (batch["position_ids"] == 0).cumsum(-1)
        mask = (document[:, None, :, None] == document[:, None, None, :]).tril()
        places = torch.arange(document.shape[1]).expand_as(document)
        return model(batch["input_ids"], attention_mask=mask, position_ids=places, use_cache=False).logits

    for exact in (True, False):
        with pytest.raises(LeakError, match="are not those of the document alone"):
            check_isolation(forward, VOCABULARY, "cpu", exact)


def test_what_cannot_be_told_is_refused():
    bert = build("Bert", **SIZES)
    training = build("GPT2", **GPT2).train()
    for forward in (
        lambda batch: bert(**batch).logits,
        lambda batch: training(**batch).logits,
        lambda batch: torch.full((*batch["input_ids"].shape, VOCABULARY), float("nan")),
        lambda batch: torch.zeros(*batch["input_ids"].shape, VOCABULARY),
    ):
        with pytest.raises(LeakError, match="cannot be told"):
            check_isolation(forward, VOCABULARY, "cpu", exact=True)


def test_the_kind_of_a_model_tells_beforehand():
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        llama = build("Llama", **GROUPED)
    assert can_pack(llama) is None
    assert can_pack(get_peft_model(build("Llama", **GROUPED), LoraConfig(target_modules=["q_proj"]))) is None
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=64, d_model=8, d_ff=8, num_layers=1, num_heads=1)
    )
    classifier = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**GROUPED))
    assert "carries a state" in can_pack(build("Mamba", **LEAKING["Mamba"]))
    assert "takes no position_ids" in can_pack(build("Bloom", **GPT2))
    assert "no causal language model" in can_pack(classifier)
    assert "an encoder and a decoder" in can_pack(t5)
    assert "no Hugging Face model" in can_pack(torch.nn.Linear(1, 1))
