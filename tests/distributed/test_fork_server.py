"""Processes from a server that has imported: they are as `python` starts them, and end with whoever wanted them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scalekit.distributed.fork_server import ForkedProcess, ForkServer
from scalekit.distributed.program import Program, has_gpu_driver, imports
from tests.support.processes import start

TELLS = """
import json, os, signal, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "main": __name__, "file": globals().get("__file__"), "directory": os.getcwd(),
    "own": os.environ.get("OWN"), "gone": os.environ.get("GONE"), "threads": len(os.listdir("/proc/self/task")),
    "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "handlers": [signal.getsignal(each) is signal.SIG_DFL for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)],
    "name": open("/proc/self/comm").read().strip(), "descriptors": len(os.listdir("/proc/self/fd")),
}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GONE", "1")
        found = ForkServer.start(["json", "no.such.module"])
    yield found
    found.stop()


def ended(process: ForkedProcess) -> int | None:
    return process.wait(30)


def told(server: ForkServer, tmp_path: Path, *words: str) -> dict[str, Any]:
    environment = {"OWN": "2", "PATH": os.environ["PATH"]}
    with (tmp_path / "output").open("wb") as output:
        process = server.fork(Program(words, environment, str(tmp_path), "rank 7"), output.fileno())
    assert ended(process) == 0
    return json.loads((tmp_path / "output").read_text())


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_a_process_is_as_python_starts_it(kind: str, server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(TELLS)
    words = {"-c": ("-c", TELLS), "-m": ("-m", "tells"), "script": ("tells.py",)}[kind]
    here = told(server, tmp_path, *words, "a", "--b=1")
    command = [sys.executable, *words, "a", "--b=1"]
    bare = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    for name in ("argv", "main", "file", "directory", "blocked", "handlers", "descriptors"):
        assert here[name] == bare[name], name
    assert (here["own"], here["gone"], here["name"]) == ("2", None, "rank 7")
    assert Path(here["path"] or tmp_path) == Path(bare["path"] or tmp_path)


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import os; os._exit(75)", 75, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("1 / 0", 1, 'Traceback (most recent call last):\n  File "<string>", line 1, in <module>\nZeroDivisionError'),
        ("import atexit; atexit.register(print, 'last')", 0, "last\n"),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import sys; sys.exit(257)", 1, ""),
        ("from scalekit.errors import PreemptedError; raise PreemptedError('asked to stop')", 75, ""),
        ("print('unwritten', end='')", 0, "unwritten"),
        ("file = open('/proc/self/fd/1', 'w'); file.write('never closed')", 0, "never closed"),
        ("import ctypes; ctypes.CDLL(None).printf(b'by a library')", 0, "by a library"),
        (
            "import threading, time; threading.Thread(target=lambda: (time.sleep(0.3), print('late'))).start()",
            0,
            "late\n",
        ),
        ("import atexit, sys; atexit.register(print, 'last'); sys.exit(3)", 3, "last\n"),
        ("raise KeyboardInterrupt", -2, "Traceback"),
    ],
)
def test_how_a_process_ends(code: str, expected: int, said: str, server: ForkServer, tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        process = server.fork(Program(["-c", code], dict(os.environ), str(tmp_path)), output.fileno())
    assert ended(process) == expected
    assert (tmp_path / "output").read_text().startswith(said)


def test_what_a_script_defines_can_be_pickled(server: ForkServer, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text("import pickle\nclass Own: pass\nassert type(pickle.loads(pickle.dumps(Own()))) is Own\n")
    assert ended(server.fork(Program([str(script)], dict(os.environ), str(tmp_path)))) == 0


def sleeper(server: ForkServer) -> ForkedProcess:
    return server.fork(Program(["-c", "import time; time.sleep(60)"], dict(os.environ), "/"))


def is_gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.02)
    return False


def test_processes_end_with_their_client(tmp_path: Path) -> None:
    """Frozen ones too, and the server itself, however the client was ended."""
    code = (
        "import os, sys, time; from scalekit.distributed.fork_server import *; "
        "s = ForkServer.start([]); p = Program(['-c', 'import time; time.sleep(60)'], dict(os.environ), '/'); "
        "ps = [s.fork(p), s.fork(p)]; os.kill(ps[0].pid, 19); "
        "print(*(each.pid for each in ps), open(f'/proc/{ps[0].pid}/stat').read().split()[3], flush=True); time.sleep(60)"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in client.stdout.readline().split()]
    client.kill()
    client.wait()
    assert all(is_gone(pid) for pid in pids)


def test_processes_end_with_their_server() -> None:
    server = ForkServer.start([])
    process = sleeper(server)
    os.kill(int(Path(f"/proc/{process.pid}/stat").read_text().split()[3]), signal.SIGKILL)
    assert ended(process) == -9
    with pytest.raises(OSError, match="refused"):
        sleeper(server)


def test_a_request_to_stop_that_reaches_the_server_is_not_its_own(server: ForkServer) -> None:
    process = sleeper(server)
    parent = int(Path(f"/proc/{process.pid}/stat").read_text().split()[3])
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(parent, number)
    time.sleep(0.2)
    assert process.poll() is None
    assert ended(server.fork(Program(["-c", "pass"], dict(os.environ), "/"))) == 0
    process.send_signal(signal.SIGTERM)
    assert ended(process) == -15


TOUCHED = """
import importlib, os, sys
found = []
def watch(frame, event, function):
    if event == "c_call" and type(function) is type(len) and function.__name__.startswith(("_cuda_", "_nccl_")):
        found.append(function.__name__)
sys.setprofile(watch)
for name in sys.argv[1:]:
    importlib.import_module(name)
sys.setprofile(None)
threads = {open(f"/proc/self/task/{each}/comm").read().strip() for each in os.listdir("/proc/self/task")}
print({*found} - {"_cuda_version"}, threads - {"python", "jemalloc_bg_thd"}, flush=True)
os._exit(0)
"""


def test_imports_touch_no_gpu_and_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forked could use neither: a driver that has been asked anything is of no use in a fork.

    Arrow's allocator has a thread, which stops itself before a fork.
    """
    monkeypatch.setattr("scalekit.distributed.program.has_gpu_driver", lambda: True)
    modules = imports([], {"model": "m", "strategy": "zero3", "logger": "wandb"})
    assert "wandb" in modules
    command = [sys.executable, "-c", TOUCHED, *modules, "scalekit.distributed.elastic_agent"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "set() set()"


def test_a_job_imports_what_it_needs() -> None:
    tensors = {"model": object(), "data": []}
    assert imports(["fit", "job.yaml"], tensors) == ["scalekit.training.fit"]
    assert (any(name.startswith("deepspeed") for name in imports([], {**tensors, "strategy": "zero2"}))) == (
        not has_gpu_driver()
    )
    assert "wandb" in imports([], {**tensors, "logger": "wandb"})


def test_a_script_is_looked_through(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import os, torch.nn\nfrom my import own\nfrom scalekit import fit\nfrom . import x\n")
    assert imports([str(script)]) == ["torch.nn", "scalekit.training.fit", "scalekit"]
    script.write_text("import (")
    assert imports([str(script)]) == []


def test_a_process_of_the_tests_has_the_imports(tmp_path: Path) -> None:
    began = time.monotonic()
    process = start(["-c", "import sys; sys.exit(3 if 'lightning.pytorch' in sys.modules else 4)"], tmp_path / "log")
    assert process.wait(120) == 3
    began = time.monotonic()
    assert start(["-c", "import scalekit.training.fit"], tmp_path / "log").wait(60) == 0
    assert time.monotonic() - began < 3  # imports take 7 s
