"""The probe: two optimizer steps of a job in processes of their own, before anything is trained.

A rank that runs out of memory in the middle of a step leaves the others waiting in a collective that never ends. So the steps
are taken by a child of each rank: where one fails, its parent says so in a store that all parents watch, and they end theirs.
The job itself is as it was: its memory, its random numbers and its process groups were never touched.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.utils.data import DataLoader, Dataset

from scalekit import hardware
from scalekit.decision import Decision, Failed
from scalekit.job import Job
from scalekit.planning.plan import readable
from scalekit.world import World, agree, first, gather

STEPS = 2
"""The first makes the optimizer's state, the second has all of it beside its activations."""

_POLL_SECONDS = 0.2
_FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of the probe, over all ranks.

    Attributes:
        peak_bytes: the most that a rank took; None where one did not get so far.
        lacking: the rank that ran out of memory, and how; None where none did.
        problem: why nothing can be said.
    """

    peak_bytes: int | None = None
    lacking: str | None = None
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"the probe says nothing: {self.problem}"
        if self.lacking is not None:
            return f"the probe ran out of memory: {self.lacking}"
        return f"the probe of {STEPS} steps took {readable(self.peak_bytes or 0)} a rank at most"


def settle(
    job: Job,
    decide: Callable[[Failed | None], Decision],
    example: Callable[[], tuple[Any, Any]],
    world: World,
    say: Callable[[str], None],
) -> Decision:
    """Decides, and tries the decision out where it wants to be; what fails makes way for what needs less.

    Args:
        job: as the user gave it.
        decide: given what has failed.
        example: gives the row that costs most, and what makes a batch of such rows.
        world: the job's processes.
        say: is told what takes a while.

    Raises:
        ScaleKitError: whatever `decide` raises, in the end that nothing fits.
    """
    failed = None
    while True:
        decision = first(lambda failed=failed: decide(failed), world)  # type: ignore[misc]
        if not decision.wants_probe:
            return decision
        way = f"{decision.strategy.name} with micro-batches of {decision.micro_batch_size}"
        say(f"probe      {STEPS} steps of {way}, in processes of their own")
        outcome = probe(job, decision, example, world)
        if outcome.lacking is None:
            return _probed(decision, outcome, world)
        failed = Failed(decision.predicted.get("peak_bytes", 1), f"{way}: {outcome}")


def _probed(decision: Decision, outcome: Outcome, world: World) -> Decision:
    """The decision with what the probe has found, which from now on corrects this machine's predictions."""
    predicted = decision.predicted
    if outcome.peak_bytes is not None and predicted:
        if world.rank == 0:
            device = hardware.detect(world.local_size, world.num_nodes).device
            assumed = predicted["items"]["allocator_and_context"]
            hardware.remember(device, max(0, assumed + outcome.peak_bytes - predicted["peak_bytes"]))
        predicted = {**predicted, "probed_peak_bytes": outcome.peak_bytes}
    return replace(decision, predicted=predicted, reasons=[*decision.reasons, str(outcome)])


def probe(job: Job, decision: Decision, example: Callable[[], tuple[Any, Any]], world: World) -> Outcome:
    """Tries a decision out; every rank calls it, and every rank gets the same outcome.

    Args:
        job: as the user gave it.
        decision: how it would be run.
        example: gives the row that costs most, and what makes a batch of such rows.
        world: the job's processes.
    """
    with tempfile.TemporaryDirectory(prefix="scalekit-probe-") as folder:
        own = _attempt(job, decision, example, world, Path(folder))
    outcomes = gather(own, world)
    lacking = [f"rank {rank}, {each.lacking}" for rank, each in enumerate(outcomes) if each.lacking]
    problems = [f"rank {rank}, {each.problem}" for rank, each in enumerate(outcomes) if each.problem]
    if lacking or problems:
        # A rank without memory takes others with it, which see no more than a lost connection.
        return Outcome(lacking=lacking[0]) if lacking else Outcome(problem=problems[0])
    return Outcome(max(each.peak_bytes or 0 for each in outcomes))


def _attempt(
    job: Job, decision: Decision, example: Callable[[], tuple[Any, Any]], world: World, folder: Path
) -> Outcome:
    result, log = folder / "result.json", folder / "log"
    with _store(world) as store, log.open("w") as output:
        try:
            _write(_shortened(job, decision, *example(), folder), folder / "job.pkl")
        except Exception as error:  # whatever a user's objects do when they are pickled
            store.set(_FAILED, "")
            return Outcome(problem=f"the job cannot be given to another process: {type(error).__name__}: {error}")
        child = subprocess.Popen(
            [sys.executable, "-m", "scalekit.probe", folder / "job.pkl", result],
            env=_environment(world),
            stdout=output,
            stderr=output,
        )
        try:
            was_ended = _watch(child, store)
        finally:
            child.kill()
            child.wait()
    return _outcome(result, log, child.returncode, was_ended)


def _watch(child: subprocess.Popen[bytes], store: Any) -> bool:
    """Waits for the child, and ends it where another rank's has failed; whether it was."""
    while child.poll() is None:
        if store.check([_FAILED]):
            return True
        time.sleep(_POLL_SECONDS)
    if child.returncode != 0:
        store.set(_FAILED, "")
    return False


def _outcome(result: Path, log: Path, code: int, was_ended: bool) -> Outcome:
    if was_ended:
        return Outcome()
    if result.is_file():
        return Outcome(**json.loads(result.read_text()))
    if code == -signal.SIGKILL:
        return Outcome(lacking="killed by the system")
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    return Outcome(problem=f"exit code {code}: {last}")


def _shortened(job: Job, decision: Decision, row: Any, collate: Any, folder: Path) -> Job:
    """The same job on the costliest row alone, for a few steps, with nothing kept of it."""
    rows = _Repeated(row, STEPS * job.global_batch_size)
    return replace(
        job,
        data=DataLoader(rows, collate_fn=collate),
        validation=None,
        processor=None,
        strategy=decision.strategy.name if job.strategy == "auto" else job.strategy,
        micro_batch_size=decision.micro_batch_size,
        activation_checkpointing=decision.activation_checkpointing,
        memory_check="warn",
        max_steps=STEPS,
        max_epochs=None,
        warmup_steps=0,
        logger=None,
        callbacks=(),
        output_dir=str(folder / "run"),
        checkpoint_every=None,
        evaluate_every=None,
        resume="never",
    )


class _Repeated(Dataset[Any]):
    """One row, many times."""

    def __init__(self, row: Any, number: int) -> None:
        self._row, self._number = row, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Any:
        return self._row


def _write(job: Job, path: Path) -> None:
    """With dill, which `datasets` brings: unlike pickle it takes what a script or a notebook defines itself."""
    import dill

    with path.open("wb") as file:
        dill.dump(job, file, recurse=True)


def _environment(world: World) -> dict[str, str]:
    """The parent's, with the way to its modules, and a meeting point of the children's own."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if world.size > 1:
        found |= {"MASTER_PORT": str(agree(_free_port(), world)), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return found


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


class _NoStore:
    """What one process needs of a store."""

    def set(self, key: str, value: str) -> None:
        """Nobody reads it."""

    def check(self, keys: list[str]) -> bool:
        return False


@contextmanager
def _store(world: World) -> Iterator[Any]:
    """Where ranks tell each other that their child has failed, without a collective."""
    if world.size == 1:
        yield _NoStore()
        return
    port = agree(_free_port(), world)
    yield TCPStore(os.environ["MASTER_ADDR"], port, world.size, is_master=world.rank == 0)
    gather(None, world)  # the master's goes last


# -- the child --------------------------------------------------------------------------------------------------------


class _Measure(Callback):
    """Writes down what the last step has taken, and ends the process: there is nothing to save."""

    def __init__(self, result: Path) -> None:
        self._result = result

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == STEPS:
            self._result.write_text(json.dumps({"peak_bytes": hardware.taken_bytes(trainer.strategy.root_device)}))
            trainer.strategy.barrier()  # a rank that ends early would look to the others like one that failed
            os._exit(0)


def _end_with_parent() -> None:
    """A child must not outlive the job, whose launcher knows nothing of it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Runs a shortened job: ``python -m scalekit.probe JOB RESULT``."""
    import dill

    from scalekit.training import run

    _end_with_parent()
    path, result = Path(sys.argv[1]), Path(sys.argv[2])
    with path.open("rb") as file:
        job: Job = dill.load(file)  # written by our own parent, a moment ago
    try:
        run(replace(job, callbacks=[_Measure(result)]))
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        result.write_text(json.dumps({"lacking": str(error).splitlines()[0]}))
        os._exit(1)  # an interpreter's proper end would wait for the others


def _is_memory(error: Exception) -> bool:
    """CUDA has a type for it, torch's allocator on CPUs only words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


if __name__ == "__main__":
    main()
