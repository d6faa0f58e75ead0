"""Starts the processes of a job, and starts them again when they fail: torchrun's own engine behind one short command."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalekit.distributed.fork_server import ForkServer
from scalekit.distributed.preemption import SignalForwarder, handle_stop_signals
from scalekit.distributed.program import has_gpu_driver, imports
from scalekit.errors import ConfigError

_PORT = 29500


@dataclass(frozen=True)
class Launch:
    """How many processes, and where they meet.

    Attributes:
        nproc: processes on each node; ``"auto"`` is one for each GPU, or one; ``"2:4"`` is 4, and down to 2 where as many fail
            again and again.
        nodes: how many nodes.
        node_rank: which of them this is, from 0.
        endpoint: ``host:port`` of the first node, where several meet.
        max_restarts: how often a job that failed is started again; it resumes from its last checkpoint.
    """

    nproc: str = "auto"
    nodes: int = 1
    node_rank: int = 0
    endpoint: str | None = None
    max_restarts: int = 0

    def __post_init__(self) -> None:
        self.sizes(gpus=1)
        if self.nodes > 1 and self.endpoint is None:
            raise ConfigError("several nodes need an endpoint, the host:port of the first one")

    def sizes(self, gpus: int) -> list[int]:
        """How many processes a node may have, the most first.

        Raises:
            ConfigError: `nproc` is no number, and no range of them.
        """
        if self.nproc == "auto":
            return [max(gpus, 1)]
        least, colon, most = self.nproc.partition(":")
        if colon and self.nodes > 1:
            raise ConfigError(
                f"nproc={self.nproc!r} is a range, which one node may have: several have as many processes each"
            )
        if not least.isdigit() or (colon and not most.isdigit()) or not 0 < int(least) <= int(most or least):
            raise ConfigError(f"nproc={self.nproc!r} is neither 'auto' nor a number nor a range, such as 2:4")
        return list(range(int(most or least), int(least) - 1, -1))

    def meeting(self) -> tuple[str, str, dict[str, str]]:
        """Where nodes meet: an endpoint, the name of the job there, and what else torchrun's rendezvous is told."""
        if self.nodes == 1:
            return "localhost:0", str(uuid.uuid4()), {}
        host, _, port = str(self.endpoint).partition(":")
        return f"{host}:{port or _PORT}", "scalekit", {"is_host": "true" if self.node_rank == 0 else "false"}


def launch(settings: Launch, program: Sequence[str], job: Mapping[str, Any] | None = None) -> int:
    """Starts the processes and waits for them; those that fail are started again, as often as `settings` says.

    A job that fails again when it has been restarted is started on fewer processes, where a range was given. A request to stop
    is the processes' to answer: they save, and end by themselves.

    Args:
        settings: how many processes, and where.
        program: ``fit job.yaml ...``, ``train.py ...`` or ``-m module ...``.
        job: the settings of the job that the program runs, where they are known.

    Returns:
        0, or the exit code of the process that failed first; `PreemptedError.code` means "start me again".

    Raises:
        ConfigError: no program.
    """
    if not program:
        raise ConfigError("nothing to launch: give a program, such as: scalekit launch --nproc 2 fit job.yaml")
    gpus = _gpus() if settings.nproc == "auto" else 0
    sizes = settings.sizes(gpus)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // sizes[0])))
    words = list(program) if program[0].endswith(".py") or program[0] == "-m" else ["-m", "scalekit", *program]

    def serve() -> ForkServer:
        return ForkServer.connected(imports(words, job))

    server = serve()  # it imports while this process does, too
    forward = SignalForwarder()
    with handle_stop_signals(forward):
        from scalekit.distributed import elastic_agent

        return elastic_agent.run(settings, words, sizes, server, serve, forward)


def _gpus() -> int:
    """The GPUs of this node; torch is not asked where the system has no driver."""
    if not has_gpu_driver():
        return 0
    import torch

    return torch.cuda.device_count()
