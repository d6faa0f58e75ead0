"""Says which rank has stopped making progress, and where every rank is, long before a collective's time-out ends the job."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from scalekit.distributed.rank_messages import RankMessages
from scalekit.distributed.world import World
from scalekit.utils.byproducts import attempt
from scalekit.utils.log import alarm

_LEAST_SECONDS = 60.0
_FIRST_STEP_SECONDS = 600.0
_STEPS = 20
_BEAT_SECONDS = 1.0
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Heartbeat:
    """What a rank tells of itself.

    Attributes:
        beats: how often it has told; one that tells no more is stopped, or dead.
        step: the optimizer step that it is in.
        idle_seconds: since it has last done a micro-batch.
        stack: where its main thread is; only of a rank that is idle for too long.
    """

    beats: int
    step: int
    idle_seconds: float
    stack: str = ""


@final
class Watchdog(Callback):
    """Watches over a job from a thread of each rank's, which the ranks' collectives do not hold up.

    Args:
        world: the job's processes.
        step_seconds: how long a step takes, by the latest ones; None before there is one.
        limit_seconds: how long a rank may take over a micro-batch without a word about it; None is 20 steps, and at least a
            minute.
    """

    def __init__(self, world: World, step_seconds: Callable[[], float | None], limit_seconds: float | None) -> None:
        self._world, self._step_seconds, self._limit = world, step_seconds, limit_seconds
        self._board = RankMessages(world, "watchdog")
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._main = threading.get_ident()
        self._step, self._moved = 0, time.monotonic()
        self._has_reported = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._move(trainer)
        self._board.open(trainer.strategy.broadcast(uuid.uuid4().hex))
        with attempt("the watchdog", f"Rank {self._world.rank} is not watched"):
            self._tell(Heartbeat(0, self._step, 0.0))  # before anything can hold this rank up
            self._thread = threading.Thread(target=self._watch, name="scalekit-watchdog", daemon=True)
            self._thread.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._move(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self._move(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._ended.set()

    def _move(self, trainer: Trainer) -> None:
        strategy: Any = trainer.strategy
        self._step, self._moved, self._has_reported = strategy.step + 1, time.monotonic(), False

    def _watch(self) -> None:
        """Tells of this rank; and where it has not moved for too long, of all, when each has had time to tell."""
        beats, before, asked = 0, None, 0.0
        while not self._ended.wait(min(_BEAT_SECONDS, self._limit or _BEAT_SECONDS)):
            beats += 1
            idle = time.monotonic() - self._moved
            is_late = idle > self._allowed()
            try:
                self._tell(Heartbeat(beats, self._step, idle, self._stack() if is_late else ""))
                if not is_late:
                    before = None
                elif before is None:
                    before, asked = self._pulses(), time.monotonic()
                elif not self._has_reported and time.monotonic() - asked > _ANSWER_SECONDS:
                    self._has_reported = True
                    self._report(before, idle)
            except (RuntimeError, OSError):
                return  # the board went with whoever kept it, and so does the job

    def _tell(self, pulse: Heartbeat) -> None:
        self._board.write(json.dumps(asdict(pulse)))

    def _pulses(self) -> dict[int, Heartbeat]:
        return {rank: Heartbeat(**json.loads(line)) for rank, line in self._board.read().items()}

    def _allowed(self) -> float:
        if self._limit is not None:
            return self._limit
        seconds = self._step_seconds()
        return _FIRST_STEP_SECONDS if seconds is None else max(_LEAST_SECONDS, _STEPS * seconds)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main)
        return "".join(traceback.format_stack(frame)[-12:]) if frame is not None else ""

    def _report(self, before: Mapping[int, Heartbeat], idle: float) -> None:
        """The first rank that answers speaks for all."""
        pulses = self._pulses()
        answering = [rank for rank, pulse in pulses.items() if rank not in before or pulse.beats > before[rank].beats]
        if min(answering, default=self._world.rank) == self._world.rank:
            alarm(told(pulses, answering, self._world.size, idle))


def told(pulses: Mapping[int, Heartbeat], answering: list[int], ranks: int, idle: float) -> str:
    """What there is to say of a job that stands still.

    Args:
        pulses: the latest of each rank.
        answering: the ranks that still tell.
        ranks: how many there are.
        idle: seconds since the rank that speaks has last done something.
    """
    lines = [f"no progress for {idle:.0f} s"]
    for rank in range(ranks):
        pulse = pulses.get(rank)
        if pulse is None:
            lines.append(f"  rank {rank} has not begun")
        elif rank not in answering:
            lines.append(f"  rank {rank} does not answer any more, since step {pulse.step}: it is stopped, or dead")
        else:
            lines.append(f"  rank {rank} is in step {pulse.step}, for {pulse.idle_seconds:.0f} s")
            lines += [f"    {line}" for line in pulse.stack.splitlines()]
    return "\n".join(lines)
