"""What to change where nothing fits, and which strategies have no point for a job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from scalekit.config.names import Checkpointing
from scalekit.config.strategy import StrategyConfig
from scalekit.planning.candidate import Candidate, PlanRequest, step_config, with_micro_batches
from scalekit.planning.memory.estimate import predict
from scalekit.planning.plan import readable


def pointless(strategy: StrategyConfig, task: PlanRequest) -> str | None:
    """Why a strategy is no way to run a task on its hardware; None where it is one."""
    hardware = task.hardware
    alone = hardware.world_size == 1
    if strategy.engine == "single":
        return None if alone else "is for one process"
    if "nvme" in strategy.offload.values():
        return "needs a fast local drive: choose it by name where you have one"
    if alone and not strategy.offload:
        return "shares out among several processes, and there is one"
    is_for_nodes = strategy.shard_group == "node" or strategy.second_shard(hardware.devices_per_node) > 1
    if hardware.nodes == 1 and is_for_nodes:
        return "saves traffic between nodes, and there is one"
    return None


def advice(task: PlanRequest, candidates: Iterable[Candidate]) -> list[str]:
    """The nearest ways to make it fit."""
    nearest = min(candidates, key=lambda c: c.memory.peak_bytes, default=None)
    if nearest is None:
        return []
    memory, items = nearest.memory, nearest.memory.items
    needed = readable(memory.peak_bytes / (1 - task.margin))
    advice = [f"the least is {nearest.name} with micro-batch {nearest.setting.micro_batch_size}: {needed} a device"]
    advice += _smaller_micro_batch(task, nearest)
    over = memory.peak_bytes - task.limit_bytes
    by_tokens = items["activations"] + items["head_and_temporaries"]
    if task.profile.subject.tokens > 1 and by_tokens > over:
        share = 1 - over / by_tokens
        tokens = int(task.profile.subject.tokens * share) // 64 * 64
        if tokens:
            advice.append(f"fewer tokens: sequence_length={tokens} would about fit ({nearest.name})")
    states = sum(items[name] for name in ("master_weights", "gradients", "optimizer_state"))
    if states > max(over, memory.peak_bytes // 100) and task.profile.trained_elements == task.profile.elements:
        advice.append(f"LoRA: with the weights frozen, {readable(states)} of their states go away ({nearest.name})")
    advice += _more_devices(task, nearest)
    return advice


def _smaller_micro_batch(task: PlanRequest, nearest: Candidate) -> list[str]:
    """Where the user has named one."""
    if nearest.setting.micro_batch_size == 1:
        return []
    peak = predict(task.profile, with_micro_batches(task, nearest.setting, 1)).peak_bytes
    if peak > task.limit_bytes:
        return []
    return [f"smaller micro-batches: micro_batch_size=1 needs {readable(peak)} ({nearest.name})"]


def _more_devices(task: PlanRequest, nearest: Candidate) -> list[str]:
    """How many devices it would take, where sharing out helps."""
    shared = next((s for s in task.strategies if "parameters" in s.shards and not s.offload), None)
    world = task.hardware.world_size
    least: Checkpointing = "full" if task.profile.traces_recomputed else "none"
    while shared is not None and world < 4096:
        world *= 2
        setting = replace(step_config(task, shared, least), world_size=world, node_size=min(world, 8))
        if predict(task.profile, setting).peak_bytes <= task.limit_bytes:
            return [f"more devices: {world} of them, under {shared.name} with micro-batch 1"]
    return []
