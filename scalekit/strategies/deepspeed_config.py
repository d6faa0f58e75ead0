"""DeepSpeed's configuration: the strategy file's block, and what the layer owns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from scalekit.config.strategy import StrategyConfig
from scalekit.strategies import deepspeed_nvme


def configuration(
    module: LightningModule,
    spec: StrategyConfig,
    precision: str,
    pins_memory: bool,
    ranks: tuple[int, int],
) -> dict[str, Any]:
    """What DeepSpeed is told.

    Args:
        module: that is trained, with its trainer.
        spec: the strategy file.
        precision: one of `precision.PRECISIONS`.
        pins_memory: whether what is offloaded stands where a GPU copies from.
        ranks: how many there are of the job, and of this node.
    """
    return {
        **spec.deepspeed,
        "zero_optimization": _zero_block(module, spec, pins_memory, ranks),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": float(module.trainer.gradient_clip_val or 0.0),
        **_precision_block(precision),
    }


def _zero_block(
    module: LightningModule, spec: StrategyConfig, pins_memory: bool, ranks: tuple[int, int]
) -> dict[str, Any]:
    block = dict(spec.deepspeed.get("zero_optimization", {}))
    if block.get("zero_hpz_partition_size") == "local_world_size":
        block["zero_hpz_partition_size"] = ranks[1]
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    block["reduce_bucket_size"] = spec.bucket_elements(trained)
    # Overlap would race with accumulation, which DeepSpeed does not see here (it refuses the pair itself).
    block.setdefault("overlap_comm", False)
    block.setdefault("memory_efficient_linear", False)  # it replaces torch's own functions for the whole process
    for key, name in (("optimizer", "offload_optimizer"), ("parameters", "offload_param")):
        if key in spec.offload:
            block[name] = {"device": spec.offload[key], "pin_memory": pins_memory}
            if spec.offload[key] == "nvme":
                block[name]["nvme_path"] = str(deepspeed_nvme.folder(spec, Path(module.trainer.default_root_dir)))
    if spec.offload.get("parameters") == "nvme":
        # A buffer that a part does not fit into ends the job; larger ones are memory that nobody uses.
        largest = max(p.numel() for p in module.parameters())
        block["offload_param"]["buffer_size"] = -(-largest // ranks[0])
    return block


def _precision_block(precision: str) -> dict[str, Any]:
    if precision == "bf16-true":
        return {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}
    if precision == "32-true":
        return {}
    # No module is named safe to communicate in half precision: gradients are reduced in float32, as promised.
    return {"torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}}
