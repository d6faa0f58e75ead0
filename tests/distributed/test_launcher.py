"""`scalekit launch`: what it starts, what it starts again, and what it leaves to the job."""

import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from scalekit.distributed.launcher import Launch
from scalekit.errors import ConfigError
from tests.support.processes import start as start_program

JOB = """
import os, signal, sys, time
from pathlib import Path

folder, ranks = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"])
if os.environ["RANK"] == "0":
    with (folder / "starts").open("a") as file:
        file.write(f"{ranks}\\n")
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
codes = dict(pair.split("=") for pair in sys.argv[2:])
if "deaf" in codes:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
if "ends-on-node" in codes and os.environ["NODE"] == codes["ends-on-node"]:
    os._exit(2)
if "wait" in codes:
    (folder / f"ready-{os.environ['RANK']}").touch()
    time.sleep(60)
if "dies-on-node" in codes and not (folder / "died").exists():
    (folder / f"ready-{os.environ['NODE']}").touch()
    while not all((folder / f"ready-{node}").exists() for node in range(2)):
        time.sleep(0.1)
    if os.environ["NODE"] != codes["dies-on-node"]:
        time.sleep(60)
    (folder / "died").touch()
    os.kill(os.getpid(), signal.SIGKILL)
starts = (folder / "starts").read_text().count(f"{ranks}\\n")
os._exit(int(codes.get(f"{ranks}.{starts}", codes.get(str(ranks), 0))))
"""


class Launched:
    """A launcher that has been started, and what it prints."""

    def __init__(self, words: Sequence[str], folder: Path, log: Path, node: int) -> None:
        self._log = log
        self.process = start_program(words, log, folder, {"NODE": str(node)})

    def ended(self, timeout_seconds: float = 120) -> tuple[int | None, str]:
        """Its exit code and its output; None where it has not ended in time."""
        code = self.process.wait(timeout_seconds)
        self.process.send_signal(signal.SIGKILL)
        return code, self._log.read_text()


def start(folder: Path, *words: str, options: tuple[str, ...], node: int = 0) -> Launched:
    job = folder / "job.py"
    job.write_text(JOB)
    program = ["-m", "scalekit", "launch", *options, "--", str(job), str(folder), *words]
    return Launched(program, folder, folder / f"log-{node}", node)


def start_nodes(folder: Path, *words: str) -> list[Launched]:
    """Two nodes, which meet at the first one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = ("--nodes", "2", "--endpoint", f"localhost:{free.getsockname()[1]}")
    return [
        start(
            folder,
            *words,
            options=("--nproc", "1", "--max-restarts", "2", *meeting, "--node-rank", str(node)),
            node=node,
        )
        for node in range(2)
    ]


def launched(folder: Path, *words: str, options: tuple[str, ...]) -> tuple[int | None, list[int]]:
    """The exit code, and on how many processes each start was."""
    code, _ = start(folder, *words, options=options).ended()
    return code, [int(line) for line in (folder / "starts").read_text().split()]


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        (["1=3"], ("--nproc", "1"), (3, [1])),
        (["1.1=3"], ("--nproc", "1", "--max-restarts", "2"), (0, [1, 1])),
        (["1=3"], ("--nproc", "1", "--max-restarts", "1"), (3, [1, 1])),
        (["1=2"], ("--nproc", "1", "--max-restarts", "1"), (2, [1])),
        (["1=75"], ("--nproc", "1", "--max-restarts", "1"), (75, [1])),
        (["2=3"], ("--nproc", "1:2", "--max-restarts", "3"), (0, [2, 2, 1])),
    ],
    ids=["no-restarts", "restarted", "in-vain", "refused", "asked-to-stop", "on-fewer"],
)
def test_what_is_started_again(
    words: list[str], options: tuple[str, ...], expected: tuple[int, list[int]], tmp_path: Path
) -> None:
    assert launched(tmp_path, *words, options=options) == expected


def test_a_request_to_stop_is_the_jobs_to_answer(tmp_path: Path) -> None:
    launched = start(tmp_path, "wait=1", options=("--nproc", "2", "--max-restarts", "3"))
    while not all((tmp_path / f"ready-{rank}").exists() for rank in range(2)):
        time.sleep(0.05)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.ended(60)[0] == 75
    assert (tmp_path / "starts").read_text() == "2\n"


def test_a_request_to_stop_before_a_job_can_answer_is_no_failure(tmp_path: Path) -> None:
    launched = start(tmp_path, "wait=1", "deaf=1", options=("--nproc", "1", "--max-restarts", "3"))
    while not (tmp_path / "ready-0").exists():
        time.sleep(0.05)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.ended(60)[0] == 75
    assert (tmp_path / "starts").read_text() == "1\n"


@pytest.mark.parametrize("node", [0, 1])
def test_what_ends_on_one_node_for_good_ends_on_all(node: int, tmp_path: Path) -> None:
    began = time.monotonic()
    nodes = start_nodes(tmp_path, "wait=1", f"ends-on-node={node}")
    ends = [each.ended() for each in nodes]
    assert [code for code, _ in ends] == [2, 2], ends
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("node", [0, 1])
def test_nodes_are_started_again_together(node: int, tmp_path: Path) -> None:
    """One process of two is killed, and the other one has not noticed anything: both nodes start again."""
    nodes = start_nodes(tmp_path, f"dies-on-node={node}")
    ends = [each.ended() for each in nodes]
    assert [code for code, _ in ends] == [0, 0], ends
    assert (tmp_path / "starts").read_text() == "2\n2\n"
    assert f"restart    1 of 2: rank {node} was killed by SIGKILL" in ends[node][1]


def test_nodes_that_are_asked_to_stop(tmp_path: Path) -> None:
    nodes = start_nodes(tmp_path, "wait=1")
    while not all((tmp_path / f"ready-{rank}").exists() for rank in range(2)):
        time.sleep(0.05)
    for each in nodes:
        each.process.send_signal(signal.SIGTERM)
    ends = [each.ended() for each in nodes]
    assert [code for code, _ in ends] == [75, 75], ends
    assert (tmp_path / "starts").read_text() == "2\n"


def test_a_range_is_for_one_node() -> None:
    with pytest.raises(ConfigError, match="a range, which one node may have"):
        Launch("2:4", nodes=2, endpoint="here:1")


@pytest.mark.parametrize("nproc", ["0", "x", "3:2", "2:", ":2", "1:x", "-1"])
def test_what_is_no_number_of_processes(nproc: str) -> None:
    with pytest.raises(ConfigError, match="neither 'auto' nor a number nor a range"):
        Launch(nproc)
