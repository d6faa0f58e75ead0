"""Starts the processes of a job, and starts them again when they fail: torchrun's own engine behind one short command."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from scalekit.errors import ConfigError
from scalekit.preemption import Forward, answered_by


@dataclass(frozen=True)
class Launch:
    """How many processes, and where they meet.

    Attributes:
        nproc: processes on each node; ``"auto"`` is one for each GPU, or one; ``"2:4"`` is 4, and down to 2 where as many fail
            again and again.
        nodes: how many nodes.
        node_rank: which of them this is, from 0.
        endpoint: ``host:port`` of the first node, where several meet.
        max_restarts: how often a job that failed is started again; it goes on from its last checkpoint.
    """

    nproc: str = "auto"
    nodes: int = 1
    node_rank: int = 0
    endpoint: str | None = None
    max_restarts: int = 0

    def sizes(self) -> list[int]:
        """How many processes a node may have, the most first.

        Raises:
            ConfigError: `nproc` is no number, and no range of them.
        """
        if self.nproc == "auto":
            return [max(_gpus(), 1)]
        least, colon, most = self.nproc.partition(":")
        if colon and self.nodes > 1:
            raise ConfigError(
                f"nproc={self.nproc!r} is a range, which one node may have: several have as many processes each"
            )
        if not least.isdigit() or (colon and not most.isdigit()) or not 0 < int(least) <= int(most or least):
            raise ConfigError(f"nproc={self.nproc!r} is neither 'auto' nor a number nor a range, such as 2:4")
        return list(range(int(most or least), int(least) - 1, -1))

    def arguments(self, program: Sequence[str]) -> list[str]:
        """torchrun's command line.

        Args:
            program: ``fit job.yaml ...`` or ``train.py ...``.

        Raises:
            ConfigError: no program, or several nodes without a place to meet.
        """
        if not program:
            raise ConfigError(
                "nothing to launch: give a program after --, such as: scalekit launch --nproc 2 -- fit job.yaml"
            )
        if self.nodes > 1 and self.endpoint is None:
            raise ConfigError("several nodes need an endpoint, the host:port of the first one")
        meeting = ["--rdzv-endpoint=localhost:0", f"--rdzv-id={uuid.uuid4()}"]
        if self.nodes > 1:
            host, _, port = str(self.endpoint).partition(":")
            meeting = [
                *(f"--rdzv-endpoint={host}:{port or 29500}", "--rdzv-id=scalekit"),
                f"--rdzv-conf=is_host={'true' if self.node_rank == 0 else 'false'}",
            ]
        script = list(program) if program[0].endswith(".py") else ["-m", "scalekit", *program]
        return [
            *(f"--nproc-per-node={self.sizes()[0]}", f"--nnodes={self.nodes}", f"--max-restarts={self.max_restarts}"),
            *("--rdzv-backend=c10d", *meeting, *script),
        ]


def launch(settings: Launch, program: Sequence[str]) -> int:
    """Starts the processes and waits for them; those that fail are started again, as often as `settings` says.

    A job that fails again when it has been restarted is started on fewer processes, where a range was given. A request to stop
    is the processes' to answer: they save, and end by themselves.

    Returns:
        0, or the exit code of the process that failed first; `PreemptedError.code` means "start me again".
    """
    sizes = settings.sizes()
    arguments = settings.arguments(program)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // sizes[0])))
    forward = Forward()
    with answered_by(forward):
        from scalekit import agent

        return agent.run(arguments, sizes, lambda: forward.is_asked)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
