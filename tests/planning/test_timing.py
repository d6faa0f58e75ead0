"""Time of a step: rooflines and volumes worked out by hand, what must never be faster, and published runs."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scalekit.config.precision import dtypes_for
from scalekit.config.strategy import ZERO_DEFAULTS, StrategyConfig, names
from scalekit.hardware import Hardware, find_device
from scalekit.hardware.links import ASSUMED
from scalekit.planning.profiling.operations import Sort
from scalekit.planning.profiling.profile import Profile, ProfiledModel, profile
from scalekit.planning.profiling.step_config import StepConfig
from scalekit.planning.profiling.tracing import Event, Parameter, Trace
from scalekit.planning.timing import device_rates, step_time
from scalekit.planning.timing.communication import Collectives, Phase, Sizes, traffic
from scalekit.planning.timing.device_rates import Rates
from scalekit.planning.timing.step_time import Time, estimate

WIDTH, BLOCKS, TOKENS = 16384, 4, 2048
NODE = Hardware.parse("8xH100-80GB")
NODES = Hardware.parse("4x8xH100-80GB")
CPUS = replace(
    NODE,
    device=replace(
        NODE.device, name="cpu", kind="cpu", flops={"float32": 1e11, "bfloat16": 2e11}, link_bytes_per_second=1e9
    ),
    devices_per_node=2,
    network_bytes_per_second=1e9,
)
PARALLEL = [name for name in names() if name != "single"]


class Fixed(Profile):
    """A stack of square matrices: three products each, in bfloat16, and a sum in float32 after each product."""

    def at(self, micro_batch_size: int, recompute: str, parameters: torch.dtype) -> Trace:
        tokens = micro_batch_size * TOKENS
        products, again = BLOCKS, BLOCKS * (recompute == "full")
        flops = np.tile([2.0 * tokens * WIDTH**2, tokens * WIDTH], 3 * products + again)
        moved = np.tile([2.0 * (WIDTH**2 + 2 * tokens * WIDTH), 8.0 * tokens * WIDTH], 3 * products + again)
        half, operations = 2 * products, len(flops)
        kinds = [Event.OPERATE] * half + [Event.BACKWARD] + [Event.OPERATE] * (operations - half)
        subjects = [*range(half), 0, *range(half, operations)]
        gradients = range(BLOCKS - 1, -1, -1)
        return Trace(
            kinds=np.array([*kinds, *[Event.GRADIENT] * BLOCKS], np.int8),
            subjects=np.array([*subjects, *gradients], np.int32),
            storage_bytes=np.zeros(0),
            handed=np.full(BLOCKS, -1, np.int32),
            flops=flops,
            moved_bytes=moved,
            low_precision=np.tile([True, False], operations // 2),
            parameters=self.parameters,
            modules=["", *(f"blocks.{i}" for i in range(BLOCKS))],
            owned=[(), *((i,) for i in range(BLOCKS))],
            blocks=list(range(1, BLOCKS + 1)),
            buffer_bytes=0,
        )


def stack(precision: str = "bf16-mixed", problem: str | None = None) -> Profile:
    subject = ProfiledModel("stack", nn.Module, lambda model, batch: batch, lambda size: None, tokens=TOKENS)
    parameters = [Parameter(f"blocks.{i}.weight", (WIDTH, WIDTH), 4, True) for i in range(BLOCKS)]
    return Fixed(subject, dtypes_for(precision), True, parameters, problem=problem)


def setting(strategy: str, hardware: Hardware = NODE, precision: str = "bf16-mixed", **more: Any) -> StepConfig:
    sizes: dict[str, Any] = {"micro_batch_size": 1, "accumulation": 1, "recompute": "none", **more}
    nodes = (hardware.world_size, hardware.devices_per_node)
    return StepConfig(StrategyConfig.load(strategy), dtypes_for(precision), *nodes, **sizes, kind=hardware.device.kind)


def step(strategy: str, hardware: Hardware = NODE, precision: str = "bf16-mixed", **more: Any) -> Time:
    return estimate(stack(precision), setting(strategy, hardware, precision, **more), hardware)


def sent_bytes(phases: list[Phase]) -> float:
    return sum(phase.sent_bytes for phase in phases)


def sizes_of(elements: int, blocks: int = 100) -> Sizes:
    return Sizes(elements, elements, 0, 0, blocks, elements, 7 * blocks, 0)


# -- compute ----------------------------------------------------------------------------------------------------------


def one_operation(flops: float, moved_bytes: float, is_low: bool, hardware: Hardware) -> float:
    work = step_time._Work(np.array([flops]), np.array([moved_bytes]), np.array([is_low]), np.array([True]))
    return step_time._roofline(work, Rates.of(setting("single", hardware), hardware)).forward


def test_a_large_product_takes_what_its_arithmetic_takes() -> None:
    # 2 x 8192^3 FLOPs at 0.7 of 989.4 TFLOP/s: 1.59 ms; its 3 x 8192^2 numbers take 0.15 ms.
    seconds = one_operation(2 * 8192**3, 6 * 8192**2, True, Hardware.parse("H100-80GB"))
    assert seconds == pytest.approx(2 * 8192**3 / (0.7 * 989.4e12))
    assert seconds == pytest.approx(1.59e-3, rel=0.01)


def test_a_product_in_float32_has_the_peak_of_float32() -> None:
    seconds = one_operation(2 * 8192**3, 12 * 8192**2, False, Hardware.parse("H100-80GB"))
    assert seconds == pytest.approx(2 * 8192**3 / (0.7 * 67e12))


def test_a_sum_takes_what_memory_takes_and_a_small_one_its_launch() -> None:
    device = Hardware.parse("H100-80GB")
    assert one_operation(1e9, 12e9, False, device) == pytest.approx(12e9 / (0.8 * 3350e9))
    assert one_operation(10, 120, False, device) == device_rates.LAUNCH_SECONDS


def test_on_a_cpu_an_operation_takes_the_sum_of_its_parts() -> None:
    for flops, moved_bytes in ((10, 120), (1e9, 12e9), (0, 1e6)):
        seconds = one_operation(flops, moved_bytes, False, CPUS)
        assert seconds == pytest.approx(flops / 1e11 + moved_bytes / 3350e9 + device_rates.DISPATCH_SECONDS)


def test_a_cpu_reaches_the_rates_that_it_was_measured_at() -> None:
    expected = 1e9 / 1e11 + 1e3 / 3350e9 + device_rates.DISPATCH_SECONDS
    assert one_operation(1e9, 1e3, False, CPUS) == pytest.approx(expected)


KERNELS = {"attention": 5e10, "convolution": 8e10, "reordering": 2e9, "function": 8e9, "normalization": 5e9}
KERNELS |= {"random": 1e9, "strided": 1e10, "dispatch": 2e-5}
MEASURED = replace(CPUS, device=replace(CPUS.device, memory_bytes_per_second=3e10, kernels=KERNELS))


@pytest.mark.parametrize(
    ("sort", "flops", "memory"),
    [
        (Sort.PLAIN, 1e11, 3e10),
        (Sort.PRODUCT, 1e11, 3e10),
        (Sort.ATTENTION, 5e10, 3e10),
        (Sort.CONVOLUTION, 8e10, 2e9),
        (Sort.FUNCTION, 1e11, 8e9),
        (Sort.NORMALIZATION, 1e11, 5e9),
        (Sort.RANDOM, 1e11, 1e9),
        (Sort.STRIDED, 1e11, 1e10),
    ],
)
def test_each_sort_of_operation_has_the_rates_that_were_measured_for_it(
    sort: Sort, flops: float, memory: float
) -> None:
    work = step_time._Work(*(np.array([each]) for each in (1e9, 1e6, False, True)), sorts=np.array([sort], np.int8))
    seconds = step_time._roofline(work, Rates.of(setting("single", MEASURED), MEASURED)).forward
    assert seconds == pytest.approx(1e9 / flops + 1e6 / memory + 2e-5)
    # bfloat16 is twice as fast here, in each sort.
    low = replace(work, low_precision=np.array([True]))
    seconds = step_time._roofline(low, Rates.of(setting("single", MEASURED), MEASURED)).forward
    assert seconds == pytest.approx(1e9 / flops / 2 + 1e6 / memory + 2e-5)


def test_a_gpus_time_does_not_depend_on_sorts() -> None:
    sizes = np.array([1e9, 1e12]), np.array([1e9, 1e3]), np.array([False, True]), np.array([True, True])
    known = Rates.of(setting("single", NODE), NODE)
    plain = step_time._roofline(step_time._Work(*sizes), known)
    for sort in Sort:
        assert step_time._roofline(step_time._Work(*sizes, sorts=np.array([sort, sort], np.int8)), known) == plain


def test_operations_are_sorted_by_what_they_do() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 4)
        )

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q = model(x).view(-1, 1, 2, 2)
        return nn.functional.scaled_dot_product_attention(q, q, q).sum()

    subject = ProfiledModel("all", build, loss, lambda size: torch.ones(size, 3, 8, 8))
    trace = profile(subject, dtypes_for("32-true"), like_a_gpu=False).at(2, "none", torch.float32)
    assert set(trace.sorts.tolist()) == set(Sort)
    forward = step_time._Work.of(trace).is_forward
    for sort in (Sort.PRODUCT, Sort.ATTENTION, Sort.CONVOLUTION, Sort.FUNCTION, Sort.NORMALIZATION):
        assert (trace.sorts[forward] == sort).any()
        assert (trace.sorts[~forward] == sort).any()
    assert (trace.flops[trace.sorts == Sort.PLAIN] == 0).all()


@pytest.mark.parametrize(("hardware", "is_cpu"), [(NODE, False), (CPUS, True)])
def test_python_takes_its_time_on_a_cpu_alone(hardware: Hardware, is_cpu: bool) -> None:
    once, thrice = (step("ddp", hardware, accumulation=n).parts["loop"] for n in (1, 3))
    dispatches = (
        device_rates.STEP_DISPATCHES + device_rates.MICRO_BATCH_DISPATCHES + device_rates.PARAMETER_DISPATCHES * BLOCKS
    )
    sums = device_rates.STEP_COLLECTIVES * ASSUMED["collective"]
    assert once == pytest.approx(is_cpu * (dispatches * device_rates.DISPATCH_SECONDS + sums))
    assert thrice - once == pytest.approx(
        is_cpu * 2 * device_rates.MICRO_BATCH_DISPATCHES * device_rates.DISPATCH_SECONDS
    )


def test_gloo_gathers_more_slowly_than_it_sums() -> None:
    """What it gathers it copies twice. As many bytes go over the wire in either."""
    known = replace(
        CPUS,
        device=replace(CPUS.device, kernels={**KERNELS, **ASSUMED, "all_reduce": 1e9, "all_gather": 2.5e8}),
    )
    found = Rates.of(setting("zero2", known), known)
    gather, reduce = (Collectives(1e9, 2, rounds=1 + is_sum, gathers=not is_sum) for is_sum in (False, True))
    assert step_time._collective_seconds(gather, found) == pytest.approx(0.5e9 / 2.5e8 + ASSUMED["collective"])
    assert step_time._collective_seconds(reduce, found) == pytest.approx(1e9 / 1e9 + ASSUMED["collective"])


def test_later_micro_batches_add_their_gradients_on_a_cpu() -> None:
    once, thrice = (step("single", replace(CPUS, devices_per_node=1), accumulation=n).parts["compute"] for n in (1, 3))
    assert thrice - 3 * once == pytest.approx(2 * 3 * 4 * BLOCKS * WIDTH**2 / 3350e9)


def test_shorter_rows_take_less_time_and_their_tokens_are_counted() -> None:
    device = Hardware.parse("H100-80GB")
    way = setting("single", device, micro_batch_size=4)
    full, half = (estimate(stack(), way, device, lambda _, fill=fill: fill) for fill in (1.0, 0.5))
    two = estimate(stack(), replace(way, micro_batch_size=2), device)
    assert half.seconds == pytest.approx(two.seconds)
    assert half.seconds < full.seconds
    assert half.tokens_per_second == pytest.approx(two.tokens_per_second)
    assert half.samples_per_second == pytest.approx(2 * two.samples_per_second)


@pytest.mark.parametrize(("strategy", "accumulation", "length"), [
    ("ddp", 1, 0.8), ("zero2", 4, 0.8), ("zero3", 4, 0.8), ("ddp", 4, 0.65), ("zero1", 4, 0.65),
])  # fmt: skip
def test_a_step_waits_for_the_rank_whose_rows_are_longest(strategy: str, accumulation: int, length: float) -> None:
    """Ranks that meet in each micro-batch wait for the longest of each; sums over several differ by less."""
    way = setting(strategy, micro_batch_size=2, accumulation=accumulation)
    found = estimate(stack(), way, NODE, {2: 0.5, 2 * NODE.world_size: 0.8}.__getitem__)
    whole = estimate(stack(), way, NODE, lambda _: length)
    assert found.seconds == pytest.approx(whole.seconds)
    assert found.tokens_per_second == pytest.approx(whole.tokens_per_second * 0.5 / length)


# -- beside the steps -------------------------------------------------------------------------------------------------


def test_an_evaluation_is_forward_passes() -> None:
    device = Hardware.parse("H100-80GB")
    one = step("single", device)
    assert one.forward_seconds == pytest.approx(one.parts["compute"] / 3)
    # ZeRO-3 gathers parameters for it.
    assert step("ddp").forward_seconds < step("zero3").forward_seconds


def test_a_save_takes_what_its_bytes_take_to_write() -> None:
    assert step_time.save_seconds(2e9) == pytest.approx(2e9 / device_rates.SAVE_BYTES_PER_SECOND)
    assert step_time.save_seconds(2e9, nodes=4, bytes_per_second=1e9) == pytest.approx(0.5)


@pytest.mark.parametrize("problem", [None, "cannot be traced"])
def test_passes_and_micro_batches_add_up(problem: str | None) -> None:
    step = estimate(stack(problem=problem), setting("single", NODE), NODE)
    product = 2 * TOKENS * WIDTH**2 / (0.7 * 989.4e12)
    summed = 0.0 if problem else 8 * TOKENS * WIDTH / (0.8 * 3350e9)
    assert step.parts["compute"] == pytest.approx(3 * BLOCKS * (product + summed))
    twice = estimate(stack(problem=problem), setting("single", NODE, accumulation=2), NODE)
    assert twice.parts["compute"] == pytest.approx(2 * step.parts["compute"])
    again = estimate(stack(problem=problem), setting("single", NODE, recompute="full"), NODE)
    assert again.parts["compute"] == pytest.approx(4 / 3 * step.parts["compute"])


def test_recomputation_is_time_and_no_model_flops() -> None:
    plain, again = (step("single", Hardware.parse("H100-80GB"), recompute=recompute) for recompute in ("none", "full"))
    assert again.mfu * again.seconds == pytest.approx(plain.mfu * plain.seconds)
    assert again.seconds > plain.seconds


def test_mfu_counts_the_backward_pass_of_what_is_trained() -> None:
    sizes = sizes_of(100)
    passes = step_time._Compute(0.0, 0.0, 0.0, forward_flops=10.0, backward_flops=30.0)
    assert step_time._model_flops(passes, sizes) == 30.0
    assert step_time._model_flops(passes, replace(sizes, trained=0)) == 20.0
    assert step_time._model_flops(replace(passes, backward_flops=5.0), sizes) == 15.0


def test_without_peaks_there_is_no_mfu_but_an_estimate() -> None:
    unknown = replace(NODE, device=replace(NODE.device, flops={}))
    partly = replace(NODE, device=replace(NODE.device, flops={"float32": 67e12}))
    assert step("ddp", unknown).mfu is None
    assert step("ddp", partly).mfu is None
    assert step("ddp", unknown).seconds > step("ddp").seconds
    assert step("ddp", partly).seconds > step("ddp").seconds


# -- communication ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 8])
def test_ddp_sends_a_ring_all_reduce_of_all_gradients_once_a_step(ranks: int) -> None:
    hardware = replace(NODE, devices_per_node=ranks)
    elements = 10**9
    for accumulation in (1, 4):
        phases = traffic(setting("ddp", hardware, accumulation=accumulation), sizes_of(elements))
        assert sent_bytes(phases) == pytest.approx(2 * (ranks - 1) / ranks * 4 * elements)


def test_zero3_and_fsdp2_send_half_as_much_again_as_ddp() -> None:
    # ZeRO's paper, section 7.2.2. DeepSpeed keeps the last half billion of so many parameters for the backward pass.
    volumes = {name: sent_bytes(traffic(setting(name, NODE, "32-true"), sizes_of(10**12))) for name in PARALLEL}
    assert volumes["fsdp2"] == pytest.approx(1.5 * volumes["ddp"])
    assert volumes["zero3"] == pytest.approx(1.5 * volumes["ddp"], rel=1e-3)


def test_zero3_gathers_a_small_model_once_and_its_smallest_parameters_never() -> None:
    # Counted with two processes of DeepSpeed 0.19.8: one gathering and one reduction of all elements a micro-batch.
    volume = sent_bytes(traffic(setting("zero3", NODE, "32-true", accumulation=3), sizes_of(10**8)))
    assert volume == pytest.approx(3 * 2 * 7 / 8 * 4 * 10**8)
    small = replace(sizes_of(10**8), shared=0, owners=0)
    volume = sent_bytes(traffic(setting("zero3", NODE, "32-true", accumulation=3), small))
    assert volume == pytest.approx((3 + 1) * 7 / 8 * 4 * 10**8)


@pytest.mark.parametrize(("strategy", "reductions"), [("zero1", 1), ("zero2", 3)])
def test_zero_reduces_gradients_and_gathers_parameters_once(strategy: str, reductions: int) -> None:
    # DeepSpeed's reductions are all-reduces, of which each rank keeps its part.
    volume = sent_bytes(traffic(setting(strategy, accumulation=3), sizes_of(10**9)))
    assert volume == pytest.approx((2 * reductions + 1) * 7 / 8 * 4e9)


def test_fsdp2_gathers_in_the_compute_type_and_reduces_every_micro_batch() -> None:
    phases = traffic(setting("fsdp2", accumulation=3), sizes_of(10**9))
    assert sent_bytes(phases) == pytest.approx(3 * (2 + 2 + 4) * 7 / 8 * 1e9)


def test_fsdp2_does_not_gather_its_root_for_the_backward_pass() -> None:
    rooted = replace(sizes_of(10**9), root=4 * 10**8, root_trained=4 * 10**8)
    assert sent_bytes(traffic(setting("fsdp2"), rooted)) == pytest.approx((2 + 2 * 0.6 + 4) * 7 / 8 * 1e9)


def test_hpz_gathers_over_the_network_once_a_step() -> None:
    sizes = sizes_of(10**11)

    def far_bytes(strategy: str) -> float:
        phases = traffic(setting(strategy, NODES, accumulation=4), sizes)
        return sum(p.times * c.sent_bytes for p in phases for c in p.collectives if not c.is_near)

    one = 31 / 32 * 4e11
    assert far_bytes("zero3-hpz") == pytest.approx((1 + 4) * one)
    assert far_bytes("zero3") == pytest.approx((8 + 4) * one, rel=0.01)


def test_hsdp_sums_a_part_of_the_gradients_between_nodes() -> None:
    sizes, size = sizes_of(10**9), 1e9
    phases = traffic(setting("hsdp", NODES, accumulation=4), sizes)
    near, far = (
        sum(p.times * c.sent_bytes for p in phases for c in p.collectives if c.is_near == is_near)
        for is_near in (True, False)
    )
    assert near == pytest.approx(4 * (2 + 2 + 4) * 7 / 8 * size)
    assert far == pytest.approx(4 * 2 * 3 / 4 * 4 * size / 8)
    (ring,) = (c for p in phases for c in p.collectives if c.at_once > 1)
    hardware = replace(NODES, network_bytes_per_second=1e6)  # of each of a node's eight devices
    rates = Rates.of(setting("hsdp", hardware), hardware)
    assert step_time._collective_seconds(ring, rates) >= 8 * ring.sent_bytes / (8 * 1e6)
    alone = traffic(setting("hsdp"), sizes)
    assert alone == traffic(setting("fsdp2"), sizes)


def test_one_rank_does_not_communicate() -> None:
    for strategy in names():
        assert step(strategy, Hardware.parse("H100-80GB")).parts["communication"] == 0


def test_a_collective_takes_its_bytes_and_its_latencies() -> None:
    collectives = Collectives(8e9, ranks=8, number=10, rounds=2)
    within = step_time._collective_seconds(collectives, Rates.of(setting("ddp"), NODE))
    assert within == pytest.approx(2 * 7e9 / (0.8 * 450e9) + 10 * 20e-6)
    # Eight adapters of 50 GB/s for a node's eight rings, and two doublings of the nodes.
    across = step_time._collective_seconds(replace(collectives, ranks=32), Rates.of(setting("ddp", NODES), NODES))
    assert across == pytest.approx(2 * 31 / 32 * 8e9 / (0.8 * 400e9) + 10 * 40e-6)


def test_gloo_has_one_ring_whatever_the_number_of_processes() -> None:
    wide = replace(CPUS, nodes=2, network_bytes_per_second=1e8)
    assert Rates.of(setting("ddp", wide), wide).network == 1e8


def test_gloo_sums_a_reduce_scatter_whole_for_every_rank() -> None:
    """And lets each take its part of it: twice what NCCL sends."""
    on_cpus = replace(NODE, device=replace(NODE.device, kind="cpu"))
    sizes = sizes_of(10**9)
    for strategy in ("fsdp2", "zero3"):
        there, here = (sent_bytes(traffic(setting(strategy, each), sizes)) for each in (NODE, on_cpus))
        assert here - there == pytest.approx(7 / 8 * 4e9)


def test_ddp_hides_all_but_its_last_bucket_behind_a_long_backward_pass() -> None:
    device_rates = Rates.of(setting("ddp"), NODE)
    reduction = step_time._collective_seconds(Collectives(4 * BLOCKS * WIDTH**2, 8, 164, 2), device_rates)
    assert step("ddp", micro_batch_size=64).parts["communication"] == pytest.approx(reduction / BLOCKS)


def test_what_does_not_hide_is_exposed() -> None:
    # ZeRO-2 waits for its reductions under our engine, and nothing overlaps on CPUs.
    short, long = (step("zero2", micro_batch_size=size).parts["communication"] for size in (1, 64))
    assert short == long > 0
    short, long = (step("ddp", CPUS, micro_batch_size=size).parts["communication"] for size in (1, 64))
    assert short == long >= 4 * BLOCKS * WIDTH**2 / 1e9


# -- offload and update -----------------------------------------------------------------------------------------------


def test_only_offloading_strategies_offload() -> None:
    for strategy in PARALLEL:
        parts = step(strategy).parts
        assert (parts["offload"] > 0) == bool(StrategyConfig.load(strategy).offload)
        assert (parts["update"] > 0) == ("optimizer" not in StrategyConfig.load(strategy).offload)


def test_adam_moves_28_bytes_an_element_after_the_norm_has_read_4() -> None:
    elements = BLOCKS * WIDTH**2
    assert step("ddp").parts["update"] == pytest.approx(32 * elements / (0.8 * 3350e9))
    assert step("zero1").parts["update"] == pytest.approx(32 * elements / 8 / (0.8 * 3350e9))
    assert step("ddp", precision="bf16-true").parts["update"] == pytest.approx(16 * elements / (0.8 * 3350e9))


def test_the_host_updates_at_its_memory_and_both_ways_cross_the_bus() -> None:
    share = BLOCKS * WIDTH**2 / 8
    expected = 28 * share / (0.8 * 614e9 / 8) + 2 * 4 * share / (0.8 * 64e9)
    assert step("zero2-offload").parts["offload"] == pytest.approx(expected)


def test_offloaded_parameters_cross_the_bus_for_each_micro_batch() -> None:
    elements = BLOCKS * WIDTH**2
    gathered = 2 * elements - ZERO_DEFAULTS["stage3_max_reuse_distance"] / 2
    once, twice = (step("zero3-offload", accumulation=n).parts["offload"] for n in (1, 2))
    assert twice - once == pytest.approx(4 * gathered / 8 / (0.8 * 64e9))
    assert step("zero3-nvme").parts["offload"] > once


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", PARALLEL)
def test_parts_sum_and_rates_follow(strategy: str) -> None:
    found = step(strategy, NODES, micro_batch_size=2, accumulation=3)
    assert tuple(found.parts) == step_time.PARTS
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert found.samples_per_second == pytest.approx(2 * 3 * 32 / found.seconds)
    assert found.tokens_per_second == pytest.approx(TOKENS * found.samples_per_second)
    assert 0 < found.mfu <= device_rates.MATMUL_EFFICIENCY
    assert found.bottleneck in (*step_time.PARTS, "memory bandwidth")


def test_the_bottleneck_is_the_largest_part() -> None:
    assert step("ddp", micro_batch_size=8).bottleneck == "compute"
    assert step("zero2", replace(NODES, network_bytes_per_second=1e8)).bottleneck == "communication"
    assert step("zero2-offload").bottleneck == "offload"
    slow_memory = replace(NODE, device=replace(NODE.device, memory_bytes_per_second=1e10))
    assert step("fsdp2", slow_memory, micro_batch_size=8).bottleneck == "memory bandwidth"


def faster_device(**factors: float) -> Callable[[Hardware], Hardware]:
    def change(hardware: Hardware) -> Hardware:
        device_rates = {name: factor * getattr(hardware.device, name) for name, factor in factors.items()}
        return replace(hardware, device=replace(hardware.device, **device_rates))

    return change


def more_flops(hardware: Hardware) -> Hardware:
    flops = {name: 1.5 * value for name, value in hardware.device.flops.items()}
    return replace(hardware, device=replace(hardware.device, flops=flops))


BETTER = {
    "flops": more_flops,
    "memory": faster_device(memory_bytes_per_second=1.5),
    "link": faster_device(link_bytes_per_second=1.5),
    "bus": faster_device(bus_bytes_per_second=1.5),
    "network": lambda hardware: replace(hardware, network_bytes_per_second=1.5 * hardware.network_bytes_per_second),
    "host": lambda hardware: replace(hardware, host_bytes_per_second=1.5 * hardware.host_bytes_per_second),
}


@pytest.mark.parametrize("better", BETTER)
@pytest.mark.parametrize("strategy", PARALLEL)
def test_better_hardware_is_never_slower(strategy: str, better: str) -> None:
    hardware = [NODE, NODES, CPUS, replace(NODES, network_bytes_per_second=1e9)]
    for each in hardware:
        before, after = step(strategy, each), step(strategy, BETTER[better](each))
        assert after.seconds <= before.seconds * (1 + 1e-12)


@pytest.mark.parametrize("hardware", [NODE, NODES, CPUS], ids=lambda hardware: hardware.name)
@pytest.mark.parametrize("strategy", PARALLEL)
def test_larger_micro_batches_of_the_same_global_batch_are_not_slower(strategy: str, hardware: Hardware) -> None:
    seconds = [step(strategy, hardware, micro_batch_size=n, accumulation=16 // n).seconds for n in (1, 2, 4, 8, 16)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(seconds))


def test_a_traced_model_has_its_forward_pass_told_from_its_backward_pass() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(4))))

    subject = ProfiledModel("linear", build, lambda model, x: model(x).sum(), lambda size: torch.ones(size, 512))
    found = profile(subject, dtypes_for("32-true"), like_a_gpu=True)
    trace = found.at(64, "none", torch.float32)
    compute = step_time._roofline(step_time._Work.of(trace), Rates.of(setting("ddp"), NODE))
    assert compute.forward_flops == 4 * 2 * 64 * 512**2
    assert compute.backward_flops == (2 * 4 - 1) * 2 * 64 * 512**2  # the first layer's input has no gradient
    sizes = Sizes.of(found, setting("zero3"), trace)
    assert sizes == Sizes(4 * 512**2, 4 * 512**2, 0, 0, blocks=4, shared=4 * 512**2, owners=4, last=512**2)
    untraced = Sizes.of(found, setting("zero3"), None)
    assert untraced == replace(sizes, last=0)


# -- published runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_8b() -> Profile:
    """At the sequence length of torchtitan's runs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )

    def example(size: int) -> dict[str, torch.Tensor]:
        ids = torch.ones(size, 8192, dtype=torch.long)
        return {"input_ids": ids, "labels": ids}

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch, use_cache=False).loss

    subject = ProfiledModel("llama", lambda: LlamaForCausalLM(config), loss, example, tokens=8192)
    return profile(subject, dtypes_for("bf16-mixed"), like_a_gpu=True)


# Llama 3 8B under FSDP2 in bfloat16, eager, sequences of 8192, with selective checkpointing, which lies between none and
# full. torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3: H100s with 2.4 TB/s and 500 W of 700;
# docs/performance.md: 64 A100s.
SLOWER_H100 = replace(find_device("H100-80GB"), memory_bytes_per_second=2.4e12)
PUBLISHED = [
    (replace(NODE, device=SLOWER_H100), 2, 5762),
    (replace(NODE, device=SLOWER_H100, nodes=16), 2, 5605),
    (Hardware.parse("8x8xA100-80GB"), 1, 2904),
]


@pytest.mark.parametrize("recompute", ["none", "full"], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("hardware", "micro_batch_size", "published"), PUBLISHED, ids=["8xH100", "128xH100", "64xA100"]
)
def test_llama_8b_takes_about_what_torchtitan_measured(
    llama_8b: Profile, hardware: Hardware, micro_batch_size: int, published: float, recompute: str
) -> None:
    found = estimate(
        llama_8b, setting("fsdp2", hardware, micro_batch_size=micro_batch_size, recompute=recompute), hardware
    )
    assert published / 1.5 < found.tokens_per_second / hardware.world_size < published * 1.5
    assert 0 < found.mfu <= 1
    assert found.bottleneck == "compute"
