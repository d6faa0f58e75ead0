"""Hardware: the table of devices, its names and counts, files of one's own, and the machine at hand."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scalekit import hardware
from scalekit.errors import ConfigError, UnknownNameError
from scalekit.hardware import COMPUTE_TYPES, DEVICES, Device, Hardware, detect, find_device

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
    subprocess.run([sys.executable, "-c", code, str(Path(hardware.__file__).parent)], check=True, timeout=60)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_parses_and_has_sane_figures(name: str) -> None:
    one = Hardware.parse(name)
    device = one.device
    assert (one.name, one.world_size, device.kind) == (name, 1, "cuda")
    assert set(device.flops) == set(COMPUTE_TYPES)
    assert 1e13 < device.flops["float32"] < 1e15
    assert 2 <= device.flops["bfloat16"] / device.flops["float32"] <= 40
    assert 20 * 2**30 < device.memory_bytes < 200 * 2**30
    assert device.memory_bytes_per_second > device.link_bytes_per_second >= 16e9
    assert 32e9 <= device.bus_bytes_per_second <= 64e9
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
    monkeypatch.setattr(hardware, "_host_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(hardware, "_copy_bytes_per_second", lambda threads: 16e9)
    monkeypatch.setattr(hardware, "_matmul_flops", lambda threads: {"float32": 16e9})
    found = [Hardware.parse(text) for text in ("cpu", "2xcpu", "16xcpu")]
    assert [each.device.flops["float32"] / 16e9 for each in found] == list(shares)
    assert [each.device.memory_bytes_per_second / 16e9 for each in found] == list(shares)
    assert {each.host_bytes_per_second for each in found} == {16e9}


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
    [("NVIDIA H100 PCIe", 85_000_000_000), ("NVIDIA A10G", 23_600_000_000), ("AMD Instinct MI300X", 25_000_000_000)],
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
    assert set(hardware._TORCH_NAMES.values()) == set(DEVICES)


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
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path / "nothing")
    monkeypatch.setattr(hardware, "_OWN_CGROUPS", tmp_path / "own")
    physical_bytes = hardware._host_memory_bytes()
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    assert physical_bytes > 2**28
    assert hardware._host_memory_bytes() == (limit_bytes or physical_bytes)


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
