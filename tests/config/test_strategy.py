"""The strategy files: a closed schema, one clear error for each wrong input."""

from pathlib import Path

import pytest

from scalekit.config.strategy import OWNED_BY_LAYER, StrategyConfig, names
from scalekit.errors import StrategyError, UnknownNameError

SHIPPED = {"single", "ddp", "fsdp2", "zero1", "zero2", "zero3"} | {
    "zero2-offload",
    "zero3-offload",
    "zero3-nvme",
    "zero3-hpz",
    "hsdp",
}


def test_all_are_shipped_and_load() -> None:
    assert set(names()) == SHIPPED
    for name in names():
        assert StrategyConfig.load(name).name == name


def test_each_says_what_it_is_for() -> None:
    from scalekit.utils.paths import folder

    for path in folder("strategies").glob("*.yaml"):
        text = path.read_text()
        assert all(f"# {word}:" in text for word in ("What", "When", "Cost", "Needs")), path


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("engine: deepspeed\nshards: [optimizer]\ndeepspeed: {zero_optimization: {stage: 1}}\n")
    assert StrategyConfig.load(path) == StrategyConfig.load(str(path))
    assert StrategyConfig.load(path).name == "mine"


def test_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'zero3'"):
        StrategyConfig.load("zer03")


@pytest.mark.parametrize(
    ("block", "error", "said"),
    [
        ({"engine": "deepspeed", "shards": 3}, StrategyError, "shards=3 must be a list"),
        ({"engine": "deepspeed", "shards": "parameters"}, StrategyError, "must be a list"),
        ({"engine": "deepspeed", "offload": "cpu"}, StrategyError, "offload='cpu' must be a mapping"),
        ({"engine": "deepspeed", "deepspeed": [1]}, StrategyError, "must be a mapping"),
        ({"engin": "ddp"}, UnknownNameError, "Did you mean 'engine'"),
        ({}, StrategyError, "names no engine"),
        ({"engine": "dpp"}, UnknownNameError, "Did you mean 'ddp'"),
        ({"engine": "ddp", "shards": ["optimiser"]}, UnknownNameError, "Did you mean 'optimizer'"),
        ({"engine": "deepspeed", "offload": {"optimizer": "disk"}}, UnknownNameError, "cpu, nvme"),
        ({"engine": "ddp", "offload": {"optimizer": "cpu"}}, StrategyError, "does not do"),
        ({"engine": "fsdp2", "shard_group": "nodes"}, UnknownNameError, "Did you mean 'node'"),
        (
            {"engine": "ddp", "shard_group": "node"},
            StrategyError,
            "has a shard_group, which the engine 'ddp' does not know",
        ),
        ({"engine": "fsdp2", "deepspeed": {"aio": {}}}, StrategyError, "its engine is 'fsdp2'"),
    ],
)
def test_wrong_files_are_refused(block: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        StrategyConfig.from_mapping("mine", block)


@pytest.mark.parametrize("path", OWNED_BY_LAYER)
def test_what_the_layer_owns_is_refused(path: str) -> None:
    block: dict = {"zero_optimization": {"stage": 2}}
    node = block
    *parents, leaf = path.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = 1
    with pytest.raises(StrategyError, match=path):
        StrategyConfig.from_mapping("mine", {"engine": "deepspeed", "deepspeed": block})


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("engine: ddp\nshards: []\nengine: deepspeed\n")
    with pytest.raises(StrategyError, match="the key 'engine' stands twice"):
        StrategyConfig.load(path)
    path.write_text("base: &base {engine: ddp}\n<<: *base\nshards: []\n")
    with pytest.raises(UnknownNameError, match="base"):  # a merge is no key
        StrategyConfig.load(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe engine: ddp", "cannot read the strategy .*mine.yaml.*invalid start byte"),
        (b"- ddp", "mine.yaml holds no strategy: it must be a mapping with the key 'engine'"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(StrategyError, match=said):
        StrategyConfig.load(tmp_path / "mine.yaml")
