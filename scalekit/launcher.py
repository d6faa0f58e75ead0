"""Starts the processes of a job: torchrun's own engine behind one short command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from scalekit.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """How many processes, and where they meet.

    Attributes:
        nproc: processes on each node; ``"auto"`` is one for each GPU, or one.
        nodes: how many nodes.
        node_rank: which of them this is, from 0.
        endpoint: ``host:port`` of the first node, where several meet.
    """

    nproc: str = "auto"
    nodes: int = 1
    node_rank: int = 0
    endpoint: str | None = None

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
        meeting = ["--standalone"]
        if self.nodes > 1:
            address, _, port = str(self.endpoint).partition(":")
            meeting = [f"--master-addr={address}", f"--master-port={port or 29500}", f"--node-rank={self.node_rank}"]
        script = list(program) if program[0].endswith(".py") else ["-m", "scalekit", *program]
        nproc = "gpu" if self.nproc == "auto" and _gpus() else "1" if self.nproc == "auto" else self.nproc
        return [f"--nproc-per-node={nproc}", f"--nnodes={self.nodes}", *meeting, *script]


def launch(settings: Launch, program: Sequence[str]) -> int:
    """Starts the processes and waits for them.

    Returns:
        0, or the exit code of the process that failed first.
    """
    arguments = settings.arguments(program)
    processes = _gpus() if settings.nproc == "auto" else int(settings.nproc)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(processes, 1))))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(arguments)
    except ChildFailedError as error:
        return abs(error.get_first_failure()[1].exitcode) or 1
    return 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
