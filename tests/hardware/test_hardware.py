"""Hardware: the table of devices, its names and counts, files of one's own, and the machine at hand."""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import scalekit
from scalekit import hardware
from scalekit.cli import main
from scalekit.config.precision import resolve_precision
from scalekit.errors import ConfigError, ScaleKitError, UnknownNameError
from scalekit.hardware import (
    COMPUTE_TYPES,
    DEVICES,
    Device,
    Hardware,
    catalog,
    detect,
    fastest_precision,
    find_device,
    links,
    local,
    measure,
    slow_precision_warning,
)
from scalekit.hardware.precision import fastest
from scalekit.planning.request import usual_precision

OWN_DEVICE = """
device:
  name: Mine
  memory_bytes: 80e9
  flops: {bfloat16: 5e14}
  memory_bytes_per_second: 2e12
  link_bytes_per_second: 1e11
  bus_bytes_per_second: 3.2e10
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "hardware.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    def pretend(name: str, memory_bytes: int) -> None:
        properties = SimpleNamespace(name=name, total_memory=memory_bytes)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)

    return pretend


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_importing_it_does_not_import_torch() -> None:
    # The package itself may import torch, so the module is loaded by itself.
    code = (
        "import sys, types; package = types.ModuleType('scalekit'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['scalekit'] = package; import scalekit.hardware; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(hardware.__file__).parents[1])], check=True, timeout=60)


def has_bfloat16(name: str) -> bool:
    """Whether a card is of NVIDIA's Ampere generation or later, or AMD's."""
    return not name.startswith(("T4", "V100"))


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_parses_and_has_sane_figures(name: str) -> None:
    one = Hardware.parse(name)
    device = one.device
    assert (one.name, one.world_size, device.kind) == (name, 1, "cuda")
    assert set(device.flops) == set(COMPUTE_TYPES) - (set() if has_bfloat16(name) else {"bfloat16"})
    assert 8e12 < device.flops["float32"] < 1e15
    assert 1.9 < device.flops["float16"] / device.flops["float32"] <= 40
    assert device.flops.get("bfloat16", device.flops["float16"]) == device.flops["float16"]
    assert 14 * 2**30 < device.memory_bytes < 300 * 2**30
    assert device.memory_bytes_per_second > device.link_bytes_per_second >= 16e9
    assert 16e9 <= device.bus_bytes_per_second <= (450e9 if name.startswith("GH") else 64e9)
    assert "NVIDIA" in device.source or "AMD" in device.source
    assert one.network_bytes_per_second > 0
    assert one.host_memory_bytes > one.device.memory_bytes
    assert one.host_bytes_per_second > 1e11
    assert one.host_cores > 0


@pytest.mark.parametrize("name", [name for name in DEVICES if name.endswith("GB")])
def test_a_program_finds_at_most_the_memory_that_the_name_says(name: str) -> None:
    said = int(name.rsplit("-", 1)[1].removesuffix("GB"))
    assert 0.95 * said * 1e9 < find_device(name).memory_bytes < said * 2**30


def test_well_known_cards_are_in_the_right_order() -> None:
    def order(figure: Callable[[Device], float], *names: str) -> bool:
        figures = [figure(find_device(name)) for name in names]
        return figures == sorted(figures)

    assert order(lambda d: d.flops["bfloat16"], "L4", "A10", "4090", "A100-80GB", "L40S", "H100", "MI300X", "B200")
    assert order(lambda d: d.flops["float32"], "A100-80GB", "L4", "A10", "H100", "B200", "4090", "L40S", "MI300X")
    assert order(lambda d: d.memory_bytes, "A10", "4090", "A100-40GB", "L40S", "H100", "H200", "B200", "MI300X")
    assert order(lambda d: d.memory_bytes_per_second, "L4", "A100-40GB", "A100-80GB", "H100", "H200", "MI300X", "B200")
    assert order(lambda d: d.link_bytes_per_second, "4090", "L4", "A100-80GB", "MI300X", "H100", "B200")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("H100", "H100-80GB"),
        ("h100 96gb", "H100-96GB"),
        ("H100 PCIe", "H100-PCIe-80GB"),
        ("GH200", "GH200-96GB"),
        ("a6000", "RTX-A6000"),
        ("5090", "RTX-5090"),
        ("h100-80gb", "H100-80GB"),
        ("A100 80GB", "A100-80GB"),
        ("mi300x", "MI300X-192GB"),
        ("4090", "RTX-4090"),
        ("rtx4090", "RTX-4090"),
        ("a10", "A10"),
        ("l4", "L4"),
    ],
)
def test_names_are_known_by_other_spellings(given: str, name: str) -> None:
    assert find_device(given).name == name


@pytest.mark.parametrize(
    ("text", "nodes", "devices", "name"),
    [
        ("H100", 1, 1, "H100-80GB"),
        ("1xH100", 1, 1, "H100-80GB"),
        ("8xH100-80GB", 1, 8, "8xH100-80GB"),
        ("6x4090", 1, 6, "6xRTX-4090"),
        ("4090", 1, 1, "RTX-4090"),
        ("16xH100", 2, 8, "2x8xH100-80GB"),
        ("64xH100-80GB", 8, 8, "8x8xH100-80GB"),
        ("64x8xH100-80GB", 64, 8, "64x8xH100-80GB"),
        ("2 X 1 X l4", 2, 1, "2x1xL4"),
        ("2x16xA100-40GB", 2, 16, "2x16xA100-40GB"),
    ],
)
def test_counts_are_nodes_and_devices(text: str, nodes: int, devices: int, name: str) -> None:
    found = Hardware.parse(text)
    assert (found.nodes, found.devices_per_node, found.name) == (nodes, devices, name)
    assert found.world_size == nodes * devices
    assert Hardware.parse(found.name) == found


def test_a_number_that_fills_no_nodes_is_refused_with_one_that_does() -> None:
    with pytest.raises(
        ConfigError, match=r"12 is no multiple of that\. Write nodes x devices, such as '2x6xH100-80GB'"
    ):
        Hardware.parse("12xH100")


@pytest.mark.parametrize("text", ["0xH100", "-1xH100", "-16xH100", "0x8xH100", "8x0xH100", "0xcpu", "0xlocal"])
def test_counts_below_one_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Hardware.parse(text)


def test_an_ambiguous_name_is_refused_with_all_that_it_may_be() -> None:
    with pytest.raises(ConfigError, match="may be A100-40GB or A100-80GB"):
        Hardware.parse("8xA100")


@pytest.mark.parametrize(
    ("text", "near"),
    [("H10O-80GB", "H100-80GB"), ("64x8xH10O-80GB", "H100-80GB"), ("12xgtx4090", "RTX-4090"), ("4xcpus", "cpu")],
)
def test_an_unknown_name_is_refused_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown hardware .* Did you mean '{near}'"):
        Hardware.parse(text)


@pytest.mark.parametrize("text", ["", "80GB", "A", "xH100", "1.5xH100", "2x3x4xH100"])
def test_what_is_no_hardware_at_all_is_refused(text: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown hardware"):
        Hardware.parse(text)


def test_cards_without_an_adapter_each_share_the_nodes_network() -> None:
    assert Hardware.parse("8xL4").network_bytes_per_second * 8 == Hardware.parse("L4").network_bytes_per_second
    assert Hardware.parse("8xH100").network_bytes_per_second == Hardware.parse("H100").network_bytes_per_second == 50e9
    assert Hardware.parse("8xA100-80GB").network_bytes_per_second == 25e9


def test_a_file_names_a_device_and_overrides(written: Callable[[str], Path]) -> None:
    path = written(
        "device: h100\ndevices_per_node: 4\nnodes: 2\nnetwork_bytes_per_second: 1e9\nhost_memory_bytes: 5e11\n"
        "host_bytes_per_second: 100.0e9\nhost_cores: 48\n"
    )
    found = Hardware.parse(path)
    assert found == Hardware.parse(str(path))
    assert found.name == "2x4xH100-80GB"
    assert found.device == DEVICES["H100-80GB"]
    assert (found.network_bytes_per_second, found.host_memory_bytes) == (1e9, 500_000_000_000)
    assert (found.host_bytes_per_second, found.host_cores) == (100e9, 48)
    assert isinstance(found.host_memory_bytes, int)


def test_a_file_with_a_name_alone_is_that_name(written: Callable[[str], Path]) -> None:
    assert Hardware.parse(written("device: 4090\n")) == Hardware.parse("RTX-4090")


def test_a_file_describes_a_device_of_its_own(written: Callable[[str], Path]) -> None:
    path = written(f"{OWN_DEVICE}\ndevices_per_node: 16\n")
    found = Hardware.parse(path)
    assert found.name == "16xMine"
    assert found.device == Device("Mine", "cuda", 80_000_000_000, {"bfloat16": 5e14}, 2e12, 1e11, 3.2e10, str(path))
    assert found.network_bytes_per_second > 0


def test_a_file_may_take_this_machines_cpu(written: Callable[[str], Path]) -> None:
    found = Hardware.parse(written("device: cpu\ndevices_per_node: 2\nhost_memory_bytes: 1e9\n"))
    assert (found.name, found.host_memory_bytes) == ("2xcpu", 1_000_000_000)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("device: H100\nnode: 2\n", UnknownNameError, "Did you mean 'nodes'"),
        ("device: H10O-80GB\n", UnknownNameError, "Did you mean 'H100-80GB'"),
        ("device: 8xH100-80GB\n", UnknownNameError, "Did you mean 'H100-80GB'"),
        ("device: A100\n", ConfigError, "A100-40GB or A100-80GB"),
        ("nodes: 2\n", ConfigError, "must say its device"),
        ("device: [H100]\n", ConfigError, "must say its device"),
        ("- H100\n", ConfigError, "must be a mapping"),
        ("", ConfigError, "must be a mapping"),
        ("device: {", ConfigError, "is not YAML"),
        ("device: H100\nnodes: 0\n", ConfigError, "nodes=0 must be a number above 0"),
        ("device: H100\nnodes: 1.5\n", ConfigError, "not a whole number"),
        ("device: H100\nnodes: true\n", ConfigError, "nodes=True must be a number"),
        ("device: H100\nhost_memory_bytes: 2 TiB\n", ConfigError, "'2 TiB' is not a number"),
        ("device: H100\nhost_cores: null\n", ConfigError, "host_cores=None is not a number"),
        ("device: H100\nnetwork_bytes_per_second: .inf\n", ConfigError, "must be a number above 0"),
        ("device: {name: Mine}\n", ConfigError, "lacks memory_bytes, flops"),
        (f"{OWN_DEVICE}  memory: 1\n", UnknownNameError, "key in `device:`"),
        (f"{OWN_DEVICE}  kind: gpu\n", UnknownNameError, "kind of device 'gpu'"),
        (OWN_DEVICE.replace("bfloat16", "bf16"), UnknownNameError, "Did you mean 'bfloat16'"),
        (OWN_DEVICE.replace("{bfloat16: 5e14}", "5e14"), ConfigError, "must be a mapping of compute types"),
        (OWN_DEVICE.replace("5e14", "fast"), ConfigError, "flops of bfloat16='fast' is not a number"),
    ],
)
def test_wrong_files_are_refused(written: Callable[[str], Path], text: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        Hardware.parse(written(text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the hardware .*none.yml: No such file"):
        Hardware.parse(tmp_path / "none.yml")


def test_hardware_by_hand_is_checked_and_can_be_a_key() -> None:
    figures = {"network_bytes_per_second": 1e9, "host_memory_bytes": 1, "host_bytes_per_second": 1e9, "host_cores": 1}
    found = Hardware(DEVICES["L4"], 2, 3, **figures)
    assert (found.world_size, {found: 1}[found]) == (6, 1)
    with pytest.raises(ConfigError, match="nodes=0"):
        Hardware(DEVICES["L4"], nodes=0, **figures)


@pytest.mark.parametrize("text", ["cpu", "CPU", "3xcpu", "16xcpu", "2x4xcpu"])
def test_the_cpu_is_measured(text: str) -> None:
    found = Hardware.parse(text)
    device = found.device
    assert (found.name, device.kind, set(device.flops)) == (text.lower(), "cpu", {"float32", "bfloat16"})
    figures = [*device.flops.values(), device.memory_bytes_per_second, device.link_bytes_per_second]
    figures += [device.bus_bytes_per_second, found.network_bytes_per_second, found.host_bytes_per_second]
    assert all(0 < figure < math.inf for figure in figures)
    assert device.memory_bytes == found.host_memory_bytes // found.devices_per_node
    assert found.host_cores >= 1


@pytest.mark.parametrize(("threads", "shares"), [(8, (1, 1 / 2, 1 / 16)), (2, (1, 1, 1 / 4)), (64, (1, 1 / 2, 1 / 16))])
def test_processes_share_the_cpu_and_have_no_more_than_their_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int, shares: tuple[float, ...]
) -> None:
    monkeypatch.setattr(local, "host_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(local, "memory_bytes_per_second", lambda threads, processes: 16e9)
    monkeypatch.setattr(local, "product_flops", lambda threads, processes: {"float32": 16e9})
    found = [Hardware.parse(text) for text in ("cpu", "2xcpu", "16xcpu")]
    assert [each.device.flops["float32"] / 16e9 for each in found] == list(shares)
    assert [each.device.memory_bytes_per_second / 16e9 for each in found] == list(shares)
    together = [share * processes for share, processes in zip(shares, (1, 2, 16), strict=True)]
    assert [each.host_bytes_per_second / 16e9 for each in found] == together


def test_the_cpu_is_measured_once_and_leaves_the_generators_alone(no_gpu: None) -> None:
    state = torch.get_rng_state()
    assert detect(2).device == detect(2).device == Hardware.parse("2xlocal").device
    assert torch.equal(torch.get_rng_state(), state)


def test_local_is_the_machine_at_hand(no_gpu: None) -> None:
    assert Hardware.parse("local") == Hardware.parse("auto") == detect() == Hardware.parse("cpu")


@pytest.mark.parametrize("counts", [(0, 1), (1, 0)])
def test_detecting_less_than_one_process_or_node_is_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        detect(*counts)


def test_a_listed_gpu_has_the_tables_rates_and_its_own_memory(gpu: Callable[[str, int], None]) -> None:
    gpu("NVIDIA H100 80GB HBM3", 84_900_000_000)
    found = Hardware.parse("8xlocal")
    assert found.name == "8xH100-80GB"
    assert found.device.memory_bytes == 84_900_000_000
    assert found.device.flops == DEVICES["H100-80GB"].flops
    assert found.network_bytes_per_second == 50e9
    assert found.host_memory_bytes == Hardware.parse("cpu").host_memory_bytes
    assert Hardware.parse("cpu").device.kind == "cpu"


@pytest.mark.parametrize(
    ("name", "memory_bytes"),
    [
        ("NVIDIA H100 NVL", 100_000_000_000),
        ("NVIDIA A100-PCIE-40GB", 42_600_000_000),
        ("AMD Instinct MI300X", 25_000_000_000),
    ],
)
def test_an_unlisted_gpu_has_no_flops_but_its_memory(
    gpu: Callable[[str, int], None], name: str, memory_bytes: int
) -> None:
    gpu(name, memory_bytes)
    device = detect(2).device
    assert (device.name, device.kind, device.memory_bytes, device.flops) == (name, "cuda", memory_bytes, {})
    assert device.memory_bytes_per_second == min(each.memory_bytes_per_second for each in DEVICES.values())
    assert 0 < device.link_bytes_per_second == device.bus_bytes_per_second
    assert "guesses" in device.source


def test_what_torch_calls_a_device_leads_to_the_table() -> None:
    assert set(catalog.TORCH_NAMES.values()) == set(DEVICES)


@pytest.mark.parametrize(
    ("own", "files", "limit_bytes"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/job/step\n", {"job/memory.max": "500", "job/step/memory.max": "max", "memory.max": "800"}, 500),
        ("3:cpu,memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "700"}, 700),
        ("3:memory:/outside\n", {"memory/memory.limit_in_bytes": "600"}, 600),
        ("3:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        (None, {}, None),
    ],
)
def test_memory_is_what_the_cgroups_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str | None, files: dict[str, str], limit_bytes: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(local, "_CGROUP", tmp_path / "nothing")
    monkeypatch.setattr(local, "_OWN_CGROUPS", tmp_path / "own")
    physical_bytes = local._host_memory_bytes()
    monkeypatch.setattr(local, "_CGROUP", tmp_path)
    assert physical_bytes > 2**28
    assert local._host_memory_bytes() == (limit_bytes or physical_bytes)


def test_what_a_probe_has_measured_is_kept_for_the_machine(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SCALEKIT_CACHE", str(tmp_path / "none" / "yet"))
    here = detect()
    assert here.device.context_bytes is None
    hardware.remember(here, 123)
    hardware.remember(replace(here, devices_per_node=2), 456)
    assert detect().device.context_bytes == 123
    assert detect(2).device.context_bytes == detect(4).device.context_bytes == 456
    assert Hardware.parse("local").device.context_bytes == 123
    assert Hardware.parse("H100-80GB").device.context_bytes is None


# -- what is measured, and kept ---------------------------------------------------------------------------------------


class Measurement:
    """Gives other rates each time, and counts how often it was asked."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> dict[str, float]:
        self.number += 1
        end = time.perf_counter() + 0.01
        while time.perf_counter() < end:  # a thread that sleeps looks like one that others keep from running
            pass
        return {"rate": 100.0 + self.number}

    def kept(self) -> float:
        return measure.kept("test", ("rate",), 1, self)["rate"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rewrite(cache: Path, **changes: float) -> None:
    (file,) = cache.glob("test-*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_two_processes_at_once_measure_once_and_a_third_not_at_all(cache: Path, tmp_path: Path) -> None:
    """What a clock gives is never the same twice."""
    code = (
        "import json, os, sys, time, torch; from pathlib import Path; from scalekit.hardware import measure; "
        "folder = Path(sys.argv[1]); (folder / f'ready-{os.getpid()}').touch()\n"
        "while len(list(folder.glob('ready-*'))) < 2: time.sleep(0.001)\n"
        "print(json.dumps([dict(measure.product_flops(1)), measure.memory_bytes_per_second(1)]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (json.loads(each.communicate(timeout=120)[0]) for each in both)
    assert first == second
    # Past what this process has in mind already.
    assert first == [measure.product_flops.__wrapped__(1), measure.memory_bytes_per_second.__wrapped__(1)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"when": 1, "share": 1, "rates": {}}',
        '{"when": 4e9, "share": 1, "rates": {"rate": 1}}',
        '{"when": "NOW", "share": 1, "rates": {"rate": NaN}}',
        '{"when": "NOW", "share": 1, "rates": {"rate": -1}}',
        '{"when": "NOW", "rates": {"rate": 1}}',
        '{"when": "NOW", "share": 1, "rates": [1]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_cache_is_measured_anew(cache: Path, text: str | bytes) -> None:
    measured = Measurement()
    assert measured.kept() == measured.kept() == 101.0
    (file,) = cache.glob("test-*.json")
    damaged = text if isinstance(text, bytes) else text.replace('"NOW"', str(time.time())).encode()
    file.write_bytes(damaged)
    assert measured.kept() == measured.kept() == 102.0


def test_what_cannot_be_kept_is_still_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCALEKIT_CACHE", str(tmp_path / "file" / "cache"))
    measured = Measurement()
    assert (measured.kept(), measured.kept()) == (101.0, 102.0)


def test_a_measurement_is_kept_for_a_day_and_a_disturbed_one_for_minutes(cache: Path) -> None:
    measured = Measurement()
    measured.kept()
    rewrite(cache, share=1.0, when=time.time() - 23 * 3600)
    assert measured.kept() == 101.0
    rewrite(cache, share=0.5, when=time.time() - 60)
    assert measured.kept() == 101.0
    rewrite(cache, share=0.5, when=time.time() - 3600)
    assert measured.kept() == 102.0
    rewrite(cache, share=1.0, when=time.time() - 25 * 3600)
    assert measured.kept() == 103.0


def test_a_measurement_that_others_keep_from_running_is_a_disturbed_one(cache: Path) -> None:
    def waits() -> dict[str, float]:
        time.sleep(0.05)
        return {"rate": 1.0}

    measure.kept("test", ("rate",), 1, waits)
    (file,) = cache.glob("test-*.json")
    assert json.loads(file.read_text())["share"] < measure.QUIET_SHARE


def test_another_processor_or_number_of_threads_is_measured_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(measure, "_CPU_INFO", info)
    measured, found = Measurement(), []
    for text in (
        "model name\t: One\nflags\t\t: sse avx2\n\nmodel name : Other\n",
        "model name : One\nflags : sse\n",
        "",
    ):
        info.write_text(text)
        measure.processor.cache_clear()
        found += [measure.processor(), measured.kept(), measured.kept()]
    measure.processor.cache_clear()
    assert found[0] == ("One", "sse avx2")
    assert found[1::3] == found[2::3] == [101.0, 102.0, 103.0]
    assert measure.kept("test", ("rate",), 2, measured)["rate"] == 104.0


def test_measuring_takes_no_longer_than_the_slowest_type_makes_it(cache: Path) -> None:
    """A product of 256 x 256 three times in each type is the least; all others are ended before they take long."""
    start = time.thread_time()
    rates = measure._time_products(1, 1)
    least = 3 * sum(2 * 256**3 / rate for rate in rates.values())
    assert time.thread_time() - start < 0.6 + 3 * least


@pytest.mark.parametrize(("threads", "processes", "at_work"), [(1, 1, 1), (1, 3, 3), (1, 9, 4), (2, 9, 2), (4, 2, 1)])
def test_as_many_are_at_work_as_there_are_cores_for(
    monkeypatch: pytest.MonkeyPatch, threads: int, processes: int, at_work: int
) -> None:
    monkeypatch.setattr(measure, "host_cores", lambda: 4)
    seen: set[int] = set()

    def make() -> dict[str, Callable[[], object]]:
        return {"run": lambda: (seen.add(threading.get_ident()), time.sleep(1e-3))}

    assert 0 < measure.usual_seconds(make, threads, processes)["run"] < 0.1
    assert len(seen) == at_work


def test_collectives_are_measured_among_processes_of_this_machine(cache: Path) -> None:
    links.collective_rates.cache_clear()
    found = links.collective_rates(1, 2)
    assert set(found) == set(links.COLLECTIVES)
    assert found is not links.ASSUMED
    assert 1e7 < found["all_gather"] < 1e11
    assert 1e7 < found["all_reduce"] < 1e11
    assert 1e-6 < found["collective"] < 0.1
    links.collective_rates.cache_clear()
    assert links.collective_rates(1, 2) == found


# -- the precision that is fast ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flops", "precision"),
    [
        ({"float32": 86e9, "bfloat16": 1.3e9}, "32-true"),
        ({"float32": 86e9, "bfloat16": 100e9}, "32-true"),
        ({"float32": 86e9, "bfloat16": 112e9}, "bf16-mixed"),
        ({"float32": 86e9, "bfloat16": 900e9}, "bf16-mixed"),
        ({"float32": 86e9}, "32-true"),
        ({"float32": 15e12, "float16": 120e12}, "32-true"),
        ({"bfloat16": 9e14}, "bf16-mixed"),
        ({}, "32-true"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_clearly_faster(flops: dict[str, float], precision: str) -> None:
    assert fastest(flops) == precision


@pytest.mark.parametrize("name", DEVICES)
def test_every_card_takes_bfloat16_where_it_has_it(name: str) -> None:
    expected = "bf16-mixed" if has_bfloat16(name) else "32-true"
    assert fastest_precision(DEVICES[name]) == usual_precision(Hardware.parse(name)) == expected


def test_a_card_without_bfloat16_takes_float32(written: Callable[[str], Path]) -> None:
    path = written(OWN_DEVICE.replace("bfloat16: 5e14", "float16: 1.2e14, float32: 1.5e13"))
    found = Hardware.parse(path)
    assert usual_precision(found) == "32-true"
    said = slow_precision_warning("bf16-mixed", found.device)
    assert said == (
        "precision bf16-mixed is slow on Mine, which does not compute bfloat16 by itself. 32-true is the fastest here"
    )


def test_auto_is_what_was_measured_to_be_the_fastest_here(no_gpu: None) -> None:
    rates = measure.product_flops(torch.get_num_threads())
    expected = "bf16-mixed" if rates["bfloat16"] >= 1.3 * rates["float32"] else "32-true"
    assert resolve_precision("auto", "cpu") == expected
    assert usual_precision(detect()) == usual_precision(Hardware.parse("2xlocal")) == expected
    assert slow_precision_warning(expected, "cpu") is None


def cpu_with(**flops: float) -> Device:
    return replace(DEVICES["L4"], name="Mine", kind="cpu", flops=flops)


@pytest.mark.parametrize(
    ("precision", "flops", "said"),
    [
        (
            "bf16-mixed",
            {"float32": 86e9, "bfloat16": 1.3e9},
            "precision bf16-mixed is 66x slower than 32-true on Mine: matrix products run at 1.3 GFLOP/s against "
            "86 GFLOP/s. 32-true is the fastest here",
        ),
        (
            "32-true",
            {"float32": 500e9, "bfloat16": 2.25e12},
            "precision 32-true is 4.5x slower than bf16-mixed on Mine: matrix products run at 500 GFLOP/s against "
            "2.2 TFLOP/s. bf16-mixed is the fastest here",
        ),
        ("bf16-true", {"float32": 86e9, "bfloat16": 43e9}, "precision bf16-true is 2.0x slower than 32-true"),
        ("bf16-true", {"float32": 86e9, "bfloat16": 900e9}, None),
        ("32-true", {"float32": 86e9, "bfloat16": 1.3e9}, None),
        ("bf16-mixed", {"float32": 86e9, "bfloat16": 80e9}, None),
        ("32-true", {"float32": 86e9, "bfloat16": 100e9}, None),
        ("auto", {"float32": 86e9, "bfloat16": 1.3e9}, None),
    ],
)
def test_a_slow_precision_is_told_with_the_factor(precision: str, flops: dict[str, float], said: str | None) -> None:
    found = slow_precision_warning(precision, cpu_with(**flops))
    assert found is None if said is None else str(found).startswith(said)


def test_a_cards_peaks_are_told_as_such() -> None:
    said = slow_precision_warning("32-true", DEVICES["H100-80GB"])
    assert said == (
        "precision 32-true is 15x slower than bf16-mixed on H100-80GB: matrix products have a peak of 67 TFLOP/s "
        "against 989 TFLOP/s. bf16-mixed is the fastest here"
    )


def test_this_cpu_is_named_and_what_it_lacks(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"float32": 86e9, "bfloat16": 1.3e9}
    monkeypatch.setattr(measure, "_CPU_INFO", tmp_path / "cpuinfo")
    for flags, lacks in (("avx2", ", no bfloat16 instructions"), ("avx2 amx_bf16", ""), ("", "")):
        (tmp_path / "cpuinfo").write_text(f"model name : One\nflags : {flags}\n")
        measure.processor.cache_clear()
        said = slow_precision_warning("bf16-true", replace(cpu_with(**rates), name="cpu"))
        assert f"on this CPU (One{lacks}): matrix products" in str(said)
    measure.processor.cache_clear()


def test_fit_tells_before_anything_is_read(cache: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    measure.product_flops.cache_clear()
    measure.kept("products", measure.PRODUCT_TYPES, threads, lambda: {"float32": 86e9, "bfloat16": 1.3e9})
    with pytest.raises(ScaleKitError):
        scalekit.fit(torch.nn.Linear(1, 1), "nowhere.jsonl", precision="bf16-mixed", max_steps=1)
    assert "WARNING    precision bf16-mixed is 66x slower than 32-true on this CPU" in capsys.readouterr().out
    measure.product_flops.cache_clear()


def test_plan_tells_too(written: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = "{float32: 86e9, bfloat16: 1.3e9}"
    place = written(f"{OWN_DEVICE.replace('{bfloat16: 5e14}', rates)}  kind: cpu\n")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 8}
    config |= {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path), "--hardware", str(place), "--precision", "bf16-mixed"]) == 0
    assert "precision bf16-mixed is 66x slower than 32-true on Mine" in capsys.readouterr().err
    assert main(["plan", str(tmp_path), "--hardware", str(place)]) == 0
    assert "slower" not in capsys.readouterr().err
