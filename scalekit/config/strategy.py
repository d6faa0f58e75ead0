"""A strategy: one YAML file that says what is sharded, what is offloaded, and which engine carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from scalekit.errors import ConfigError, StrategyError, UnknownNameError, shown
from scalekit.utils.paths import folder
from scalekit.utils.yaml_text import read_mapping

ENGINES = ("single", "ddp", "fsdp2", "deepspeed")
SHARDED = ("parameters", "gradients", "optimizer")
OFFLOAD_KEYS = ("parameters", "optimizer", "nvme_path")
OFFLOAD_TARGETS = ("cpu", "nvme")
SHARD_GROUPS = ("job", "node")

LARGEST_BUCKET = 500_000_000
"""DeepSpeed's own default size of the buffer that gradients are reduced in, in elements."""

# DeepSpeed's own defaults where a strategy's file has no others (deepspeed/runtime/zero/config.py), in elements.
ZERO_DEFAULTS = {
    "stage3_param_persistence_threshold": 1e5,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "sub_group_size": 1e9,
}

FAST_BUCKET = 50_000_000
"""A buffer from which on links are as fast as they get, in elements."""

# What the layer decides, by the path of the key in a DeepSpeed configuration.
OWNED_BY_LAYER = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size and micro_batch_size",
    "managed_gradient_accumulation": "global_batch_size and micro_batch_size",
    "gradient_clipping": "gradient_clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "precision",
    "bf16": "precision",
    "torch_autocast": "precision",
    "zero_optimization.offload_param": "the strategy's own `offload:`",
    "zero_optimization.offload_optimizer": "the strategy's own `offload:`",
}


@dataclass(frozen=True)
class StrategyConfig:
    """What the ranks of a job share out among them.

    Attributes:
        name: the file's name without its ending.
        engine: one of ``single``, ``ddp``, ``fsdp2``, ``deepspeed``.
        shards: which of ``parameters``, ``gradients``, ``optimizer`` each rank keeps only its part of.
        offload: where ``parameters`` and ``optimizer`` live between uses: ``cpu`` or ``nvme`` (then ``nvme_path`` too).
        deepspeed: DeepSpeed's own settings, less those that the layer owns.
        shard_group: the ranks that keep shards together, of the engine ``fsdp2``: those of the ``job``, or of a ``node``, each
            of which has a copy of all.
    """

    name: str
    engine: str
    shards: tuple[str, ...] = ()
    offload: Mapping[str, str] = field(default_factory=dict)
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    shard_group: str = "job"

    def group_size(self, world_size: int, node_size: int) -> int:
        """The ranks among which shards are kept, and with which they are gathered."""
        return min(node_size, world_size) if self.shard_group == "node" else world_size

    @property
    def stage(self) -> int:
        """ZeRO's, of the engine ``deepspeed``."""
        return int(self._zero.get("stage", 0))

    @property
    def _zero(self) -> Mapping[str, Any]:
        return self.deepspeed.get("zero_optimization") or {}

    def zero(self, name: str) -> float:
        """One of `ZERO_DEFAULTS`, as the strategy's file has it."""
        return float(self._zero.get(name, ZERO_DEFAULTS[name]))

    def second_shard(self, node_size: int) -> int:
        """Over how many ranks ZeRO++ shares its second shard of the parameters out; 1 where there is none."""
        size = self._zero.get("zero_hpz_partition_size", 1)
        return node_size if size == "local_world_size" else int(size)

    def bucket_elements(self, trained_elements: int) -> int:
        """The size of the buffer in which DeepSpeed reduces gradients.

        DeepSpeed's default of half a billion elements is two gigabytes that a small model has no use for, and would hold all
        its gradients at once, which ZeRO-2 is there to avoid. So it is an eighth of them, within bounds.
        """
        given = self._zero.get("reduce_bucket_size")
        if given is not None:
            return int(float(given))
        return min(LARGEST_BUCKET, trained_elements, max(FAST_BUCKET, trained_elements // 8))

    @classmethod
    def load(cls, name_or_path: str | Path) -> StrategyConfig:
        """Reads a strategy by its name in ``strategies/``, or by the path of a file.

        Raises:
            UnknownNameError: no such strategy, or an unknown key in the file.
            StrategyError: the file cannot be used.
        """
        text = str(name_or_path)
        path = Path(text) if text.endswith((".yaml", ".yml")) else folder("strategies") / f"{text}.yaml"
        if not path.is_file():
            raise UnknownNameError("strategy", text, names())
        try:
            block, _ = read_mapping(path, "strategy", "a mapping with the key 'engine'")
        except ConfigError as error:
            raise StrategyError(str(error)) from error
        return cls.from_mapping(path.stem, block)

    @classmethod
    def from_mapping(cls, name: str, block: Mapping[str, Any]) -> StrategyConfig:
        """Checks a strategy's keys and values against the closed schema."""
        known = [f.name for f in fields(cls) if f.name != "name"]
        _known(f"key in strategy {name!r}:", block, known)
        if "engine" not in block:
            raise StrategyError(f"strategy {name!r} names no engine. Known: {', '.join(ENGINES)}")
        _known("engine", [block["engine"]], ENGINES)
        for key, kind, rule in (
            ("shards", list, "a list"),
            ("offload", dict, "a mapping"),
            ("deepspeed", dict, "a mapping"),
        ):
            if not isinstance(block.get(key) or kind(), kind):
                raise StrategyError(f"strategy {name!r}: {key}={shown(block[key])} must be {rule}")
        shards = tuple(block.get("shards") or ())
        _known(f"entry in `shards:` of strategy {name!r}:", shards, SHARDED)
        offload = dict(block.get("offload") or {})
        _known(f"entry in `offload:` of strategy {name!r}:", offload, OFFLOAD_KEYS)
        _known("offload target", [v for k, v in offload.items() if k != "nvme_path"], OFFLOAD_TARGETS)
        deepspeed = dict(block.get("deepspeed") or {})
        _refuse_owned(name, deepspeed)
        if deepspeed and block["engine"] != "deepspeed":
            raise StrategyError(f"strategy {name!r} has a `deepspeed:` block, but its engine is {block['engine']!r}")
        if offload and block["engine"] != "deepspeed":
            raise StrategyError(f"strategy {name!r} offloads, which the engine {block['engine']!r} does not do")
        group = block.get("shard_group", "job")
        _known("shard_group", [group], SHARD_GROUPS)
        if group != "job" and block["engine"] != "fsdp2":
            raise StrategyError(
                f"strategy {name!r} has a shard_group, which the engine {block['engine']!r} does not know"
            )
        return cls(name, block["engine"], shards, offload, deepspeed, group)


def names() -> list[str]:
    """The strategies that ship with ScaleKit."""
    return sorted(path.stem for path in folder("strategies").glob("*.yaml"))


def _known(kind: str, given: Any, known: Any) -> None:
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known)


def _refuse_owned(name: str, deepspeed: Mapping[str, Any]) -> None:
    for path, setting in OWNED_BY_LAYER.items():
        node: Any = deepspeed
        *parents, leaf = path.split(".")
        for parent in parents:
            node = node.get(parent) or {}
        if leaf in node:
            raise StrategyError(
                f"strategy {name!r} sets DeepSpeed's {path!r}, which ScaleKit decides: use {setting} instead"
            )
