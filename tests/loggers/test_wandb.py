"""Weights & Biases is a by-product: whatever its server does, the job is trained, and told of in a line."""

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from scalekit.distributed.fork_server import ForkServer
from scalekit.distributed.program import Program
from tests.support.processes import ROOT

JOB = """
import lightning.pytorch, os, sys, time
import torch, scalekit
from torch import nn

if "IMPORTED" in os.environ:
    import wandb  # which takes seconds of its own

rows = [{"x": torch.full((2,), float(i)), "y": torch.ones(1)} for i in range(12)]
logger, folder = sys.argv[1] if sys.argv[1] != "none" else None, sys.argv[2]


def fit(logger, folder):
    began = time.monotonic()
    scalekit.fit(
        nn.Linear(2, 1), rows, loss=nn.MSELoss(), max_steps=3, global_batch_size=4, logger=logger, output_dir=folder,
    )
    return time.monotonic() - began


fit(None, folder + "-before")  # what a process does once is not the server's
print("it took", fit(logger, folder))
print("wandb is imported:", "wandb" in sys.modules)
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
names = [open(f"/proc/{child}/comm").read().strip() for child in children]
print("processes of W&B:", [name for name in names if "wandb" in name])
"""
SECONDS = 10


class Refuses(BaseHTTPRequestHandler):
    code = 401

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b'{"errors": [{"message": "permission denied"}]}'
        self.send_response(self.code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 -- so the server calls it

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def nobody() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield taken.getsockname()[1]


@contextmanager
def silent() -> Iterator[int]:
    with socket.socket() as listens:
        listens.bind(("127.0.0.1", 0))
        listens.listen(64)
        yield listens.getsockname()[1]


def refusing(code: int) -> Callable[[], Iterator[int]]:
    @contextmanager
    def refuses() -> Iterator[int]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Refuses,), {"code": code}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
        server.server_close()

    return refuses


class Done(NamedTuple):
    """How a job ended, and what it printed."""

    code: int | None
    said: str


@cache
def server_without_wandb() -> ForkServer:
    return ForkServer.start(["scalekit.training.fit"])


def run(folder: Path, logger: str, **environment: str) -> Done:
    """A job in a process of its own, whose home nobody has logged in from."""
    script, log = folder / "job.py", folder / "output"
    script.write_text(JOB)
    usual = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    usual |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    program = Program(
        [str(script), logger, str(folder / "run")], {**usual, **environment}, str(folder), own_session=True
    )
    with log.open("wb") as file:
        process = server_without_wandb().fork(program, file.fileno())
        code = process.wait(240)
    return Done(code, log.read_text(errors="replace"))


def test_without_the_logger_it_is_not_imported(tmp_path: Path) -> None:
    done = run(tmp_path, "none")
    assert done.code == 0, done.said
    assert "wandb is imported: False" in done.said


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(nobody, id="nobody", marks=pytest.mark.long),
        pytest.param(silent, id="silent"),
        pytest.param(refusing(401), id="401"),
        pytest.param(refusing(403), id="403", marks=pytest.mark.long),
    ],
)
def test_a_server_that_takes_no_run(server: Callable[[], Iterator[int]], tmp_path: Path) -> None:
    with server() as port:
        done = run(tmp_path, "wandb", WANDB_API_KEY="a" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{port}", IMPORTED="1")
    said = done.said
    assert done.code == 0, said
    assert steps(tmp_path) == [1, 2, 3]
    (warning,) = [line for line in said.splitlines() if "WARNING" in line]
    assert f"takes no run at http://127.0.0.1:{port}" in warning
    assert "Traceback" not in said
    assert not re.search("^wandb:", said, re.MULTILINE), said
    (place,) = re.findall("`wandb sync (.+)`", warning)
    assert Path(place).parent == tmp_path / "run" / "wandb"
    assert next(Path(place).glob("run-*.wandb")).stat().st_size > 0
    (seconds,) = re.findall(r"^it took (\S+)$", said, re.MULTILINE)
    assert float(seconds) < SECONDS + 5  # which the job itself takes, on a loaded machine


def test_disabled_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "wandb", WANDB_API_KEY="a" * 40, WANDB_MODE="disabled")
    assert done.code == 0, done.said
    assert "wandb is imported: False" in done.said
    assert "processes of W&B: []" in done.said
    assert not [*tmp_path.rglob("*wandb*")]


def test_a_mode_that_there_is_not_is_refused_before_data_is_read(tmp_path: Path) -> None:
    done = run(tmp_path, "wandb", WANDB_MODE="of")
    assert done.code
    assert "WANDB_MODE='of' is no mode of W&B's" in done.said.splitlines()[-1]
    assert not (tmp_path / "run").exists()
