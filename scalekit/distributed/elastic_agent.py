"""torchrun's agent over forked processes: it starts a node's, watches over them, and decides what is started again."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters, registry
from torch.distributed.elastic.rendezvous.api import RendezvousError

from scalekit.distributed.fork_server import ADDRESS, ForkedProcess, ForkServer
from scalekit.distributed.launcher import Launch
from scalekit.distributed.preemption import SignalForwarder
from scalekit.distributed.program import Program
from scalekit.distributed.world import MESSAGE_STORE
from scalekit.errors import PreemptedError

REFUSED = 2
"""The exit code of a job whose settings, data or model are wrong: they are so the next time too."""

_ENDED = "SCALEKIT_ENDED"
"""What a node says to the others when a process of its own has ended for good, with the exit code."""

_LOOK_SECONDS = 0.1
_LOST_SECONDS = 3.0
"""How long processes may take to find that another one has died, which may hold them in a collective for ever."""


@final
class Agent(SimpleElasticAgent):
    """Starts failed processes again, those of all nodes together; not those that ask to be let be.

    Args:
        spec: torchrun's.
        words: of the program that each process runs.
        sizes: how many processes this node may have, the most first. It has as many; and less, one step at a time, when a job
            that was started again fails again.
        server: forks them.
        serve: starts another server, where the first one is gone.
        stop: whether somebody wants the job to stop.

    Attributes:
        code: that the job has ended with.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        words: Sequence[str],
        sizes: Sequence[int],
        server: ForkServer,
        serve: Callable[[], ForkServer],
        stop: SignalForwarder,
    ) -> None:
        super().__init__(spec)
        self._words, self._sizes = words, list(sizes)
        self._server, self._serve = server, serve
        self._stop = stop
        self._processes: dict[int, ForkedProcess] = {}
        self._failing_since: float | None = None
        self._failed_at: list[int] = []
        self.code = 0
        stop.processes = lambda: list(self._processes.values())

    # -- torchrun's own questions -------------------------------------------------------------------------------------

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._stop.is_asked:
            raise SignalException("asked to stop", signal.SIGTERM)
        # What ranks tell of themselves stays readable when any of them is frozen or dead: none keeps it.
        store: Any = worker_group.store
        if worker_group.group_rank == 0:
            self._board = TCPStore(str(worker_group.master_addr), 0, is_master=True, wait_for_workers=False)
            store.set(MESSAGE_STORE, f"{self._board.host}:{self._board.port}")
        board = store.get(MESSAGE_STORE).decode()
        self._failing_since, self._processes = None, {}
        for worker in worker_group.workers:
            environment = {
                **os.environ,
                **self._environment(worker_group, worker),
                MESSAGE_STORE: board,
                ADDRESS: self._server.address,
            }
            name = f"rank {worker.global_rank}"
            program = Program(self._words, environment, os.getcwd(), name)
            self._processes[worker.local_rank] = self._fork(program)
        self._stop.again()
        return {rank: process.pid for rank, process in self._processes.items()}

    def _fork(self, program: Program) -> ForkedProcess:
        try:
            return self._server.fork(program)
        except OSError:
            self._server = self._serve()
            return self._server.fork(program)

    def _environment(self, group: WorkerGroup, worker: Worker) -> dict[str, str]:
        """What torchrun tells a process of its place."""
        spec = group.spec
        return {
            "RANK": str(worker.global_rank),
            "WORLD_SIZE": str(worker.world_size),
            "LOCAL_RANK": str(worker.local_rank),
            "LOCAL_WORLD_SIZE": str(spec.local_world_size),
            "GROUP_RANK": str(group.group_rank),
            "GROUP_WORLD_SIZE": str(group.group_world_size),
            "ROLE_NAME": spec.role,
            "ROLE_RANK": str(worker.role_rank),
            "ROLE_WORLD_SIZE": str(worker.role_world_size),
            "MASTER_ADDR": str(group.master_addr),
            "MASTER_PORT": str(group.master_port),
            "TORCHELASTIC_RUN_ID": spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
            "TORCHELASTIC_RESTART_COUNT": str(spec.max_restarts - self._remaining_restarts),
            "TORCHELASTIC_USE_AGENT_STORE": str(spec.rdzv_handler.use_agent_store),
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        store: Any = worker_group.store
        result = RunResult(state=self._state(), return_values={each.global_rank: None for each in worker_group.workers})
        if result.is_failed():
            codes = {each.global_rank: self._processes[each.local_rank].returncode for each in worker_group.workers}
            rank, code = first_failed(codes)
            if not self._is_started_again(rank, code):
                if code < 0:
                    _say(f"failed     {_ended_how(rank, code)}")  # it could not say so itself
                self._end(abs(code))
                store.set(_ENDED, str(self.code))
        elif result.state == WorkerState.HEALTHY and (ended := _ended(store)):
            self._end(ended)
            result = RunResult(state=WorkerState.FAILED)
        if self.code:
            self._exit_barrier()  # type: ignore[no-untyped-call]  # the node where all meet must not go before the others have ended too
        return result

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        """One that waits in a collective hears no signal but this, and has nothing more to save."""
        self._shutdown(signal.SIGKILL)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        for process in self._processes.values():
            process.send_signal(death_sig)
        end = time.monotonic() + timeout
        for process in self._processes.values():
            if process.wait(max(0.0, end - time.monotonic())) is None:
                process.send_signal(signal.SIGKILL)

    # -- what has become of the processes -----------------------------------------------------------------------------

    def _state(self) -> WorkerState:
        """Of all processes together.

        Where one has failed, the others find that out in a moment, and end by themselves; or wait for it in a collective. Those
        that a request has reached end one after another, when their part of the checkpoint is written.
        """
        codes = [process.poll() for process in self._processes.values()]
        if not any(codes):
            return WorkerState.HEALTHY if None in codes else WorkerState.SUCCEEDED
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if None in codes and REFUSED not in codes:
            are_saving = all(code in (None, 0, PreemptedError.code) for code in codes)
            if are_saving or now - self._failing_since < _LOST_SECONDS:
                return WorkerState.HEALTHY
        return WorkerState.FAILED

    def _end(self, code: int) -> None:
        """Starts nothing again."""
        self.code = PreemptedError.code if self._stop.is_asked and code != REFUSED else code
        self._remaining_restarts = 0

    def _is_started_again(self, rank: int, code: int) -> bool:
        """Whether a job that has ended with a code is started again, and on how many processes."""
        limit = self._worker_group.spec.max_restarts
        if (
            self._stop.is_asked
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
        _say(
            f"restart    {len(self._failed_at)} of {limit}: {_ended_how(rank, code)}; the job resumes from its last "
            f"checkpoint, on {self._sizes[0]} processes"
        )
        return True


def run(
    settings: Launch,
    words: Sequence[str],
    sizes: Sequence[int],
    server: ForkServer,
    serve: Callable[[], ForkServer],
    stop: SignalForwarder,
) -> int:
    """Starts a node's processes and waits for them; arguments are as `Agent` takes them.

    Returns:
        0, or the exit code of the process that failed first.
    """
    # By default processes that are started again meet in the store of those before them, and read their addresses.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    endpoint, name, configuration = settings.meeting()
    # One node needs no name that others could find it by, which a system may not know.
    address = "localhost" if settings.nodes == 1 else None
    meeting = RendezvousParameters("c10d", endpoint, name, settings.nodes, settings.nodes, address, **configuration)
    try:
        spec = WorkerSpec(
            role="default",
            local_world_size=sizes[0],
            entrypoint=" ".join(words),
            rdzv_handler=registry.get_rendezvous_handler(meeting),
            max_restarts=settings.max_restarts,
            monitor_interval=_LOOK_SECONDS,
            local_addr=address,
        )
        agent = Agent(spec, words, sizes, server, serve, stop)
        try:
            agent.run()
        except SignalException as error:
            return PreemptedError.code if stop.is_asked else 128 + int(error.sigval)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        spec.rdzv_handler.shutdown()
    except RendezvousError as error:
        _say(f"the nodes do not meet any more at {endpoint}: {error}")
        return 1
    return agent.code


def _ended(store: Any) -> int:
    """What a process of another node has ended with for good; 0 where none has."""
    try:
        return int(store.get(_ENDED)) if store.check([_ENDED]) else 0
    except DistError:
        return 0  # the node where all meet is gone, which the agent finds out by itself


def first_failed(codes: Mapping[int, int | None]) -> tuple[int, int]:
    """The rank that has failed first, and how, by the exit codes of ranks; negative for a signal.

    A process that was killed has failed first: the others fail for want of it.
    """
    return min(((rank, code) for rank, code in codes.items() if code), key=lambda each: (each[1] > 0, each[0]))


def _ended_how(rank: int, code: int) -> str:
    return f"rank {rank} was killed by {signal.Signals(-code).name}" if code < 0 else f"rank {rank} ended with {code}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
