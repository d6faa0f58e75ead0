"""What is exported opens with plain transformers and PEFT, under the names that the hub has, and computes what was trained."""

import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import scalekit
from scalekit import errors
from scalekit.checkpoint import state_json
from scalekit.checkpoint.format import MANIFEST, Listed, checksum, manifest
from scalekit.cli import main
from tests.support import parity_cases as parity
from tests.support.language_model import make_tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
BATCH = parity.collate(parity.causal_rows()[:4])


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=parity.VOCABULARY, **SMALL))


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **SMALL))


def mixtral() -> nn.Module:
    sizes = {"vocab_size": parity.VOCABULARY, "num_key_value_heads": 2, "num_local_experts": 4}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, **sizes))


def nomic() -> nn.Module:
    """On the disk queries, keys and values are one tensor, and in memory three."""
    return transformers.NomicBertForMaskedLM(transformers.NomicBertConfig(vocab_size=parity.VOCABULARY, **SMALL))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "llama-tied": lambda: parity.llama(tied=True),
    "llama-untied": lambda: parity.llama(tied=False),
    "gpt2": parity.gpt2,
    "bert": bert,
    "t5": parity.t5,
    "vit": vit,
    "mixtral": mixtral,
}


def saved(folder: Path, build: Callable[[], nn.Module]) -> str:
    """A folder that `from_pretrained` opens, with what makes inputs for the model."""
    torch.manual_seed(1)
    build().save_pretrained(folder)
    size = {"height": 8, "width": 8}
    (transformers.ViTImageProcessor(size=size) if build is vit else make_tokenizer()).save_pretrained(folder)
    return str(folder)


def images() -> datasets.Dataset:
    made = [Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)) for i in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    return datasets.Dataset.from_dict({"image": made, "label": [0, 0, 1, 1]}, features=features)


def fit(model: Any, data: Any, folder: Path, **settings: Any) -> scalekit.Run:
    """Two steps, large enough to show."""
    usual = {"strategy": "single", "precision": "32-true", "activation_checkpointing": False, "micro_batch_size": 2}
    usual |= {"global_batch_size": 2, "max_steps": 2, "learning_rate": 1e-2, "output_dir": str(folder)}
    return scalekit.fit(model, data, **{**usual, **settings})


def logits(model: Any, batch: dict[str, Tensor] = BATCH) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def opened(folder: Path, cls: Any) -> Any:
    """By plain `from_pretrained`, which must find each weight, and no others."""
    model, found = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model


def nothing_left(folder: Path, name: str = "out") -> bool:
    return not [path for path in folder.iterdir() if name in path.name]


@dataclass(frozen=True)
class Trained:
    run: scalekit.Run
    batch: dict[str, Tensor]


@pytest.fixture(scope="module", params=BUILDERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    name = saved(folder / "base", BUILDERS[request.param])
    if request.param == "vit":
        return Trained(fit(name, images(), folder / "run"), {"pixel_values": torch.randn(2, 3, 8, 8)})
    rows = (parity.translation_rows if request.param == "t5" else parity.causal_rows)()[:4]
    return Trained(fit(name, rows, folder / "run", processor=make_tokenizer()), parity.collate(rows))


def test_a_checkpoint_opens_by_itself(trained: Trained) -> None:
    model = opened(trained.run.checkpoint / "model", type(trained.run.model))
    assert torch.equal(logits(model, trained.batch), logits(trained.run.model, trained.batch))


def test_an_export_is_what_save_pretrained_writes(trained: Trained, tmp_path: Path) -> None:
    exported = scalekit.export(trained.run.checkpoint, tmp_path / "out")
    model = opened(exported, type(trained.run.model))
    assert torch.equal(logits(model, trained.batch), logits(trained.run.model, trained.batch))
    trained.run.model.save_pretrained(tmp_path / "expected")
    assert same(weights(exported), weights(tmp_path / "expected"))
    beside = {path.name for path in (trained.run.checkpoint / "model").iterdir()}
    assert {path.name for path in exported.iterdir()} == beside
    assert beside & {"tokenizer.json", "preprocessor_config.json"}


def checkpoint_of(model: Any, folder: Path) -> Path:
    """One without training; with many small files, which a job only has of a large model."""
    options = {} if isinstance(model, peft.PeftModel) else {"max_shard_size": "20KB", "save_original_format": False}
    model.save_pretrained(folder / "model", **options)
    (folder / "state.json").write_bytes(state_json.written({"scalekit": {}}, "state")["state.json"])
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    sizes = {name: Listed((folder / name).stat().st_size, 0) for name in names}
    sums = checksum(folder, sizes)
    (folder / MANIFEST).write_text(manifest({name: Listed(sizes[name].size_bytes, sums[name]) for name in names}))
    return folder


def test_experts_get_their_own_names_back(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(mixtral(), tmp_path / "step-00000001")
    fused = weights(checkpoint / "model")["model.layers.0.mlp.experts.gate_up_proj"]
    found = weights(scalekit.export(checkpoint, tmp_path / "out"))
    assert torch.equal(found["model.layers.0.block_sparse_moe.experts.3.w1.weight"], fused[3, :64])
    assert torch.equal(found["model.layers.0.block_sparse_moe.experts.3.w3.weight"], fused[3, 64:])
    assert not [name for name in found if "gate_up_proj" in name]


@pytest.mark.parametrize("build", [BUILDERS["llama-untied"], mixtral, nomic], ids=["llama", "mixtral", "nomic"])
def test_many_files_are_taken_one_by_one(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    """All at once only where one file needs another's weights for its own, as nomic's do."""
    model = build()
    checkpoint = checkpoint_of(model, tmp_path / "step-00000001")
    exported = scalekit.export(checkpoint, tmp_path / "out")
    model.save_pretrained(tmp_path / "expected")
    assert same(weights(exported), weights(tmp_path / "expected"))
    assert torch.equal(logits(opened(exported, type(model))), logits(model))
    files = len(list((checkpoint / "model").glob("*.safetensors")))
    assert files > 3
    assert len(list(exported.glob("*.safetensors"))) == (1 if build is nomic else files)


@pytest.mark.parametrize("build", [BUILDERS["llama-untied"], mixtral], ids=["copied", "converted"])
def test_a_full_disk_leaves_nothing(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(build(), tmp_path / "step-00000001")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(errors.CheckpointError, match=r"could not be exported to .*out: .*File too large"):
            scalekit.export(checkpoint, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert nothing_left(tmp_path)


def test_a_plain_modules_weights_are_copied(tmp_path: Path) -> None:
    run = fit(parity.mlp(), parity.number_rows()[:4], tmp_path / "run", loss=nn.MSELoss())
    exported = scalekit.export(run.folder, tmp_path / "out")
    assert [path.name for path in exported.iterdir()] == ["model.safetensors"]
    assert same(load_file(exported / "model.safetensors"), run.model.state_dict())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("base"), BUILDERS["llama-tied"])


def adapted(base: str, further: str = "", **settings: Any) -> peft.PeftModel:
    """With further weights that are trained, those of which the name ends so."""
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "down_proj"], **settings))
    for name, parameter in model.named_parameters():
        if further and name.endswith(further):
            parameter.requires_grad_(True)
    return model


def test_an_adapter_is_exported_alone_or_merged(base: str, tmp_path: Path) -> None:
    model, rows = adapted(base, task_type="CAUSAL_LM"), parity.causal_rows()[:4]
    run = fit(model, rows, tmp_path / "run", processor=make_tokenizer())
    expected, untrained = logits(run.model), transformers.AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(expected, logits(untrained), atol=1e-3)

    for folder in (run.checkpoint / "model", scalekit.export(run.checkpoint, tmp_path / "out")):
        fresh = transformers.AutoModelForCausalLM.from_pretrained(base)
        again = peft.PeftModel.from_pretrained(fresh, folder)
        assert torch.equal(logits(again), expected)
        assert same(peft.get_peft_model_state_dict(again), load_file(folder / "adapter_model.safetensors"))

    merged = scalekit.export(run.checkpoint, tmp_path / "merged", merge=True)
    torch.testing.assert_close(logits(opened(merged, type(untrained))), expected, rtol=0, atol=1e-5)
    assert weights(merged).keys() == weights(Path(base)).keys()
    assert (merged / "tokenizer.json").is_file()
    assert not [path.name for path in merged.iterdir() if path.name.startswith(("adapter", "README"))]


def test_an_adapter_without_a_task_knows_its_base_models_class(base: str, tmp_path: Path) -> None:
    model = adapted(base, init_lora_weights=False)
    merged = scalekit.export(checkpoint_of(model, tmp_path / "step-00000001"), tmp_path / "out", merge=True)
    found = logits(opened(merged, transformers.LlamaForCausalLM))
    torch.testing.assert_close(found, logits(model), rtol=0, atol=1e-5)


def test_weights_trained_beside_an_adapter_are_merged_or_missed(base: str, tmp_path: Path) -> None:
    run = fit(adapted(base, "norm.weight", task_type="CAUSAL_LM"), parity.causal_rows()[:4], tmp_path / "run")
    with pytest.raises(errors.ConfigError, match=r"layernorm.weight.* and 2 more.*--merge"):
        scalekit.export(run.checkpoint, tmp_path / "out")
    assert nothing_left(tmp_path)
    merged = scalekit.export(run.checkpoint, tmp_path / "out", merge=True)
    model = opened(merged, transformers.AutoModelForCausalLM)
    torch.testing.assert_close(logits(model), logits(run.model), rtol=0, atol=1e-5)


def test_a_base_that_is_gone_is_said_so(tmp_path: Path) -> None:
    name = saved(tmp_path / "base", BUILDERS["llama-tied"])
    checkpoint = checkpoint_of(adapted(name, task_type="CAUSAL_LM"), tmp_path / "step-00000001")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(errors.ModelError, match=f"its base model cannot be found: '{name}'"):
        scalekit.export(checkpoint, tmp_path / "out", merge=True)
    assert nothing_left(tmp_path)


def test_a_base_that_has_changed_under_its_name_is_said_so(tmp_path: Path) -> None:
    """By a hundredth in one number of one weight, at a merge and where the job is resumed."""
    name, rows = saved(tmp_path / "base", BUILDERS["llama-tied"]), parity.causal_rows()[:4]
    run = fit(adapted(name, task_type="CAUSAL_LM"), rows, tmp_path / "run", checkpoint_every=1)
    scalekit.export(run.checkpoint, tmp_path / "before", merge=True)
    other = transformers.AutoModelForCausalLM.from_pretrained(name)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] *= 1.01
    other.save_pretrained(name)
    with pytest.raises(errors.CheckpointError, match=r"another base model .*layers.1.mlp.up_proj.weight differs"):
        scalekit.export(run.checkpoint, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()
    first = run.folder / "checkpoints" / "step-00000001"
    with pytest.raises(errors.CheckpointError, match=r"another base model .*layers.1.mlp.up_proj.weight differs"):
        fit(adapted(name, task_type="CAUSAL_LM"), rows, tmp_path / "resumed", resume=str(first))


def test_a_base_that_is_another_is_said_so(tmp_path: Path) -> None:
    name = saved(tmp_path / "base", BUILDERS["llama-tied"])
    checkpoint = checkpoint_of(adapted(name, task_type="CAUSAL_LM"), tmp_path / "step-00000001")
    saved(tmp_path / "base", parity.gpt2)
    with pytest.raises(errors.ModelError, match=f"an adapter that cannot be put on '{name}'"):
        scalekit.export(checkpoint, tmp_path / "out", merge=True)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (peft.LoraConfig(target_modules=["q_proj"]), errors.ModelError, "names no base model"),
        (
            peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
            errors.ConfigError,
            "a prompt_tuning adapter, which has no weights to merge",
        ),
    ],
    ids=["no base", "prompt"],
)
def test_what_cannot_be_merged_is_said_so(settings: Any, error: type[Exception], said: str, tmp_path: Path) -> None:
    model = peft.get_peft_model(parity.llama(tied=True), settings)
    with pytest.raises(error, match=said):
        scalekit.export(checkpoint_of(model, tmp_path / "step-00000001"), tmp_path / "out", merge=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(parity.llama(tied=True), tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000002")


def test_a_run_is_its_newest_checkpoint(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = checkpoint_of(parity.llama(tied=True), checkpoint.with_name("step-00000001"))
    left = tmp_path / ".out.partial" / "left.txt"  # by an export that was killed
    left.parent.mkdir()
    left.touch()
    assert main(["export", str(checkpoint.parents[1]), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    said = capsys.readouterr().out
    assert str(checkpoint) in said
    bytes_ = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert f"{bytes_:,} bytes" in said
    assert same(weights(tmp_path / "out"), weights(checkpoint / "model"))
    assert not same(weights(tmp_path / "out"), weights(older / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_does_not_share_its_files(checkpoint: Path, tmp_path: Path) -> None:
    """Whoever writes into it must not change the checkpoint."""
    exported = scalekit.export(checkpoint, tmp_path / "out")
    assert all(path.stat().st_nlink == 1 for path in exported.iterdir())


def test_wrong_inputs_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, damaged, out = tmp_path / "full", tmp_path / "step-00000003", tmp_path / "out"
    full.mkdir()
    (full / "notes.txt").touch()
    checkpoint_of(parity.llama(tied=True), damaged)
    (damaged / "model" / "config.json").write_text(json.dumps({}))
    wrong: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((checkpoint, out, "hugingface"), errors.UnknownNameError, "unknown format 'hugingface'. Did you mean 'huggi"),
        ((checkpoint, full), errors.ConfigError, "full is not empty"),
        ((checkpoint, full / "notes.txt"), errors.ConfigError, "notes.txt is a file"),
        (
            (checkpoint, full / "notes.txt" / "out"),
            errors.CheckpointError,
            "could not be exported to .*Not a directory",
        ),
        ((checkpoint, checkpoint / "model" / "out"), errors.ConfigError, "lies within the checkpoint"),
        ((checkpoint, out, "huggingface", True), errors.ConfigError, "holds a whole model"),
        ((tmp_path / "nowhere", out), errors.CheckpointError, "neither a checkpoint nor a run's folder with one"),
        ((damaged, out), errors.CheckpointError, "config.json is damaged"),
    ]
    for arguments, error, said in wrong:
        with pytest.raises(error, match=said):
            scalekit.export(*arguments)
        assert nothing_left(tmp_path)
    assert main(["export", str(checkpoint), str(full)]) == 2
    assert f"ConfigError: {full} is not empty" in capsys.readouterr().err
