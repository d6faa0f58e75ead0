"""Starts the processes of a job, and starts them again when they fail: torchrun's own engine behind one short command."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from scalekit.errors import ConfigError, PreemptedError
from scalekit.preemption import SIGNALS, forward

_REFUSED = 2
"""The exit code of a job whose settings, data or model are wrong: they are so the next time too."""


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
        if not least.isdigit() or (colon and not most.isdigit()) or not 0 < int(least) <= int(most or least):
            raise ConfigError(f"nproc={self.nproc!r} is neither 'auto' nor a number nor a range, such as 2:4")
        return list(range(int(most or least), int(least) - 1, -1))

    def arguments(self, program: Sequence[str], size: int) -> list[str]:
        """torchrun's command line.

        Args:
            program: ``fit job.yaml ...`` or ``train.py ...``.
            size: processes on each node.

        Raises:
            ConfigError: no program, or several nodes without a place to meet.
        """
        if not program:
            raise ConfigError(
                "nothing to launch: give a program after --, such as: scalekit launch --nproc 2 -- fit job.yaml"
            )
        if self.nodes > 1 and self.endpoint is None:
            raise ConfigError("several nodes need an endpoint, the host:port of the first one")
        meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={uuid.uuid4()}"]
        if self.nodes > 1:
            address, _, port = str(self.endpoint).partition(":")
            meeting = [f"--master-addr={address}", f"--master-port={port or 29500}", f"--node-rank={self.node_rank}"]
        script = list(program) if program[0].endswith(".py") else ["-m", "scalekit", *program]
        return [f"--nproc-per-node={size}", f"--nnodes={self.nodes}", *meeting, *script]


def launch(settings: Launch, program: Sequence[str]) -> int:
    """Starts the processes and waits for them; those that fail are started again, as often as `settings` says.

    A job that fails again when it has been restarted is started on fewer processes, where a range was given.

    Returns:
        0, or the exit code of the process that failed first; `PreemptedError.code` means "start me again".
    """
    sizes = settings.sizes()
    failed_at: list[int] = []
    while True:
        code = _run(settings.arguments(program, sizes[0]), sizes[0])
        if code in (0, PreemptedError.code) or (code == _REFUSED and (len(sizes) == 1 or not failed_at)):
            return code
        if code != _REFUSED:
            if len(failed_at) == settings.max_restarts:
                return code
            failed_at.append(sizes[0])
        if len(sizes) > 1 and (code == _REFUSED or failed_at.count(sizes[0]) > 1):
            sizes = sizes[1:]
        print(
            f"restart    {len(failed_at)} of {settings.max_restarts}: a process ended with {code}; the job goes on from its "
            f"last checkpoint, on {sizes[0]} processes",
            file=sys.stderr,
            flush=True,
        )


def _run(arguments: list[str], size: int) -> int:
    """Runs the processes once. A request to stop is theirs to answer: they save, and end by themselves."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    config, entrypoint, words = config_from_args(parse_args(arguments))  # type: ignore[no-untyped-call]
    config.max_restarts = 0
    config.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
    before = {each: signal.signal(each, forward) for each in SIGNALS}
    try:
        elastic_launch(config, entrypoint)(*words)
    except ChildFailedError as error:
        return abs(error.get_first_failure()[1].exitcode) or 1
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
