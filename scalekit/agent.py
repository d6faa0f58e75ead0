"""torchrun's agent, which starts a node's processes and watches over them, but decides for itself what is started again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters, registry
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import config_from_args, parse_args

from scalekit.errors import PreemptedError
from scalekit.world import BOARD

REFUSED = 2
"""The exit code of a job whose settings, data or model are wrong: they are so the next time too."""

_ENDED = "SCALEKIT_ENDED"
"""What a node says to the others when a process of its own has ended for good, with the exit code."""


@final
class Agent(LocalElasticAgent):
    """Starts failed processes again, those of all nodes together; not those that ask to be let be.

    Args:
        sizes: how many processes this node may have, the most first. It has as many; and less, one step at a time, when a job
            that was started again fails again.
        is_asked: whether somebody wants the job to stop.
        options: torchrun's.

    Attributes:
        code: that the job has ended with.
    """

    def __init__(self, sizes: Sequence[int], is_asked: Callable[[], bool], **options: Any) -> None:
        super().__init__(**options)
        self._sizes, self._is_asked = list(sizes), is_asked
        self._failed_at: list[int] = []
        self.code = 0

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        store: Any = worker_group.store
        if result.is_failed() and not self._goes_on(code_of(result)):
            self._end(code_of(result))
            store.set(_ENDED, str(self.code))
        elif result.state == WorkerState.HEALTHY and (ended := _ended(store)):
            self._end(ended)
            result = RunResult(state=WorkerState.FAILED)
        if self.code:
            self._exit_barrier()  # type: ignore[no-untyped-call]  # the node where all meet must not go before the others have ended too
        return result

    def _end(self, code: int) -> None:
        """Starts nothing again."""
        self.code = PreemptedError.code if self._is_asked() and code != REFUSED else code
        self._remaining_restarts = 0

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._is_asked():
            raise SignalException("asked to stop", signal.SIGTERM)
        # What ranks tell of themselves stays readable when any of them is frozen or dead: none keeps it.
        store: Any = worker_group.store
        if worker_group.group_rank == 0:
            self._board = TCPStore(str(worker_group.master_addr), 0, is_master=True, wait_for_workers=False)
            store.set(BOARD, f"{self._board.host}:{self._board.port}")
        os.environ[BOARD] = store.get(BOARD).decode()
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _goes_on(self, code: int) -> bool:
        """Whether a job that has ended with a code is started again, and on how many processes."""
        limit = self._worker_group.spec.max_restarts
        if (
            self._is_asked()
            or code == PreemptedError.code
            or (code == REFUSED and not (self._failed_at and self._sizes[1:]))
        ):
            return False
        if code == REFUSED:
            self._remaining_restarts += 1  # fewer processes are another try at the same start
        elif len(self._failed_at) == limit:
            return False
        else:
            self._failed_at.append(self._sizes[0])
        if self._sizes[1:] and (code == REFUSED or self._failed_at.count(self._sizes[0]) > 1):
            del self._sizes[0]
            self._worker_group.spec.local_world_size = self._sizes[0]
        print(
            f"restart    {len(self._failed_at)} of {limit}: a process ended with {code}; the job goes on from its last "
            f"checkpoint, on {self._sizes[0]} processes",
            file=sys.stderr,
            flush=True,
        )
        return True


def run(arguments: list[str], sizes: Sequence[int], is_asked: Callable[[], bool]) -> int:
    """Starts a node's processes and waits for them.

    Args:
        arguments: torchrun's command line.
        sizes, is_asked: as `Agent` takes them.

    Returns:
        0, or the exit code of the process that failed first.
    """
    config, entrypoint, words = config_from_args(parse_args(arguments))  # type: ignore[no-untyped-call]
    # What asks to stop is left to the processes, which save before they end.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    # By default processes that are started again meet in the store of those before them, and read their addresses.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    meeting = RendezvousParameters(
        config.rdzv_backend,
        config.rdzv_endpoint,
        config.run_id,
        config.min_nodes,
        config.max_nodes,
        config.local_addr,
        **config.rdzv_configs,
    )
    try:
        spec = WorkerSpec(
            role=config.role,
            local_world_size=sizes[0],
            entrypoint=entrypoint,
            args=tuple(words),
            rdzv_handler=registry.get_rendezvous_handler(meeting),
            max_restarts=config.max_restarts,
            monitor_interval=config.monitor_interval,
            local_addr=config.local_addr,
        )
        agent = Agent(sizes, is_asked, spec=spec, logs_specs=config.logs_specs, start_method=config.start_method)
        try:
            agent.run()
        except SignalException as error:
            return PreemptedError.code if is_asked() else 128 + int(error.sigval)
        spec.rdzv_handler.shutdown()
    except RendezvousError as error:
        print(f"the nodes do not meet any more at {config.rdzv_endpoint}: {error}", file=sys.stderr, flush=True)
        return 1
    return agent.code


def _ended(store: Any) -> int:
    """What a process of another node has ended with for good; 0 where none has."""
    try:
        return int(store.get(_ENDED)) if store.check([_ENDED]) else 0
    except DistError:
        return 0  # the node where all meet is gone, which the agent finds out by itself


def code_of(result: RunResult) -> int:
    """The exit code of the process that failed first, or the number of the signal that ended it; never 0."""
    first = min(result.failures.values(), key=lambda failure: failure.timestamp, default=None)
    return 1 if first is None else abs(first.exitcode) or 1
