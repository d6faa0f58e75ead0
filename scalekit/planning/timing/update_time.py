"""How long the optimizer's update takes, where its state lies."""

from __future__ import annotations

from scalekit.config.precision import Dtypes
from scalekit.planning.profiling.step_config import StepConfig
from scalekit.planning.timing.communication import Sizes, gathered_again
from scalekit.planning.timing.device_rates import Rates


def _update_bytes(dtypes: Dtypes, moments: int) -> int:
    """Memory traffic of updating one element: reads it, its gradient and moments, writes it and the moments. Adam's is 28."""
    master = (dtypes.master or dtypes.parameters).itemsize
    return 2 * master + dtypes.parameters.itemsize + 2 * moments * dtypes.optimizer_state.itemsize


def _share(setting: StepConfig, sizes: Sizes) -> float:
    """Elements that one rank updates."""
    ranks = setting.strategy.group_size(setting.world_size, setting.node_size)
    return sizes.trained / (ranks if "optimizer" in setting.strategy.shards else 1)


def update_seconds(setting: StepConfig, sizes: Sizes, rates: Rates) -> float:
    """On the device: the gradients are read for their norm, and the fused optimizer passes over its share once."""
    if "optimizer" in setting.strategy.offload:
        return 0.0
    dtypes = setting.dtypes
    per_element = dtypes.parameters.itemsize + _update_bytes(dtypes, setting.moments)
    return _share(setting, sizes) * per_element / rates.memory


def offload_seconds(setting: StepConfig, sizes: Sizes, rates: Rates) -> float:
    """What optimizer and parameters on the host cost; none of it overlaps, since DeepSpeed copies on the compute stream."""
    offload, seconds = setting.strategy.offload, 0.0
    if "optimizer" in offload:
        seconds += _host_update_seconds(setting, sizes, rates)
    if "parameters" in offload:
        size = (
            setting.accumulation
            * (sizes.shared + gathered_again(setting, sizes))
            * setting.dtypes.parameters.itemsize
            / setting.world_size
        )
        seconds += size / rates.bus + (size / rates.nvme if offload["parameters"] == "nvme" else 0.0)
    return seconds


def _host_update_seconds(setting: StepConfig, sizes: Sizes, rates: Rates) -> float:
    """Once a step: gradients go down, the CPU updates as its memory allows, and parameters come up unless they stay there.

    ZeRO-Offload (arXiv 2101.06840, section 4). From drives, master weights and moments are read, and written again.
    """
    dtypes, offload, share = setting.dtypes, setting.strategy.offload, _share(setting, sizes)
    crossings = 1 if "parameters" in offload else 2
    seconds = share * crossings * dtypes.parameters.itemsize / rates.bus
    seconds += share * _update_bytes(dtypes, setting.moments) / rates.host
    if offload["optimizer"] == "nvme":
        state = (dtypes.master or dtypes.parameters).itemsize + setting.moments * dtypes.optimizer_state.itemsize
        seconds += share * 2 * state / rates.nvme
    if offload.get("parameters") == "nvme":
        seconds += share * dtypes.parameters.itemsize / rates.nvme
    return seconds
