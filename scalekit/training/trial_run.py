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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]
from torch.utils.data import DataLoader, Dataset

from scalekit import hardware
from scalekit.config.settings import TRIAL, Job
from scalekit.distributed.world import World, all_gather_object, broadcast_object, device_type, run_on_rank_zero
from scalekit.training.autotune import Decision, FailedTrial
from scalekit.training.trial_process import STEPS, TrialResult
from scalekit.utils.log import log

_POLL_SECONDS = 0.2
_FAILED = "failed"


def choose_with_trial(
    job: Job,
    decide: Callable[[FailedTrial | None], Decision],
    example: Callable[[], tuple[Any, Any]],
    world: World,
) -> Decision:
    """Decides, and tries the decision out where it wants to be; what fails makes way for what needs less.

    Args:
        job: as the user gave it.
        decide: given what has failed.
        example: gives the row that costs most, and what makes a batch of such rows.
        world: the job's processes.

    Raises:
        ScaleKitError: whatever `decide` raises, in the end that nothing fits.
    """
    failed = None
    while True:
        decision = run_on_rank_zero(lambda failed=failed: decide(failed), world)  # type: ignore[misc]
        if not decision.wants_probe:
            return decision
        way = f"{decision.strategy.name} with micro-batches of {decision.micro_batch_size}"
        log("probe", f"{STEPS} steps of {way}, in processes of their own")
        outcome = probe(job, decision, example, world)
        if outcome.lacking is None:
            return _probed(decision, outcome, world)
        failed = FailedTrial(decision.peak_bytes, f"{way}: {outcome}")


def _probed(decision: Decision, outcome: TrialResult, world: World) -> Decision:
    """The decision with what the probe has found, which from now on corrects this machine's predictions."""
    predicted = decision.predicted
    if outcome.peak_bytes is not None and predicted:
        if world.rank == 0:
            tensors = predicted["peak_bytes"] - predicted["items"]["allocator_and_context"]
            beside = outcome.peak_bytes - tensors if outcome.context_bytes is None else outcome.context_bytes
            hardware.remember(hardware.detect(world.local_size, world.num_nodes), max(0, beside))
        predicted = {**predicted, "probed_peak_bytes": outcome.peak_bytes}
    return replace(decision, predicted=predicted, reasons=[*decision.reasons, str(outcome)])


def probe(job: Job, decision: Decision, example: Callable[[], tuple[Any, Any]], world: World) -> TrialResult:
    """Tries a decision out; every rank calls it, and every rank gets the same outcome.

    Args:
        job: as the user gave it.
        decision: how it would be run.
        example: gives the row that costs most, and what makes a batch of such rows.
        world: the job's processes.
    """
    with tempfile.TemporaryDirectory(prefix="scalekit-probe-") as folder:
        own = _attempt(job, decision, example, world, Path(folder))
    outcomes = all_gather_object(own, world)
    lacking = [f"rank {rank}, {each.lacking}" for rank, each in enumerate(outcomes) if each.lacking]
    problems = [f"rank {rank}, {each.problem}" for rank, each in enumerate(outcomes) if each.problem]
    if lacking or problems:
        # A rank without memory takes others with it, which see no more than a lost connection.
        return TrialResult(lacking=lacking[0]) if lacking else TrialResult(problem=problems[0])
    contexts = [each.context_bytes for each in outcomes if each.context_bytes is not None]
    return TrialResult(max(each.peak_bytes or 0 for each in outcomes), max(contexts, default=None))


def _attempt(
    job: Job, decision: Decision, example: Callable[[], tuple[Any, Any]], world: World, folder: Path
) -> TrialResult:
    result, log = folder / "result.json", folder / "log"
    with _store(world) as store, log.open("w") as output:
        environment = _environment(world)  # all ranks agree in it, so that it comes before what may fail on one
        try:
            _write(_shortened(job, decision, *example(), folder), folder / "job.pkl")
        except Exception as error:  # whatever a user's objects do when they are pickled
            store.set(_FAILED, "")
            return TrialResult(problem=f"the job cannot be given to another process: {type(error).__name__}: {error}")
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "scalekit.training.trial_process",
                folder / "job.pkl",
                result,
                str(os.getpid()),
                str(_used_bytes(world)),
            ],
            env=environment,
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


def _outcome(result: Path, log: Path, code: int, was_ended: bool) -> TrialResult:
    if result.is_file():
        return TrialResult(**json.loads(result.read_text()))
    if was_ended:
        return TrialResult()
    if code == -signal.SIGKILL:
        return TrialResult(lacking="killed by the system")
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    return TrialResult(problem=f"exit code {code}: {last}")


def _shortened(job: Job, decision: Decision, row: Any, collate: Any, folder: Path) -> Job:
    """The same job on the costliest row alone, for a few steps, with nothing kept of it."""
    rows = _Repeated(row, STEPS * job.batch)
    return replace(
        job,
        data=DataLoader(rows, collate_fn=collate),
        validation=None,
        task=None,
        processor=None,
        packing=False,
        transform=None,
        validation_transform=None,
        metrics=None,
        generate=None,
        strategy=decision.strategy.name if job.strategy == "auto" else job.strategy,
        precision=decision.precision,  # type: ignore[arg-type]
        micro_batch_size=decision.micro_batch_size,
        activation_checkpointing=decision.activation_checkpointing,
        memory_check="warn",
        max_steps=STEPS,
        max_epochs=None,
        num_workers=0,
        warmup_steps=0,
        callbacks=(),
        output_dir=str(folder / "run"),
        **TRIAL,
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
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "MASTER_PORT": str(broadcast_object(_free_port(), world)),
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "MALLOC_TOP_PAD_": "131072",  # glibc's own: memory that is kept when it is freed would be measured as needed
    }


def _used_bytes(world: World) -> int:
    """What this process and others take of its GPU already, which is not the child's; 0 on a CPU."""
    if device_type() == "cpu":
        return 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(world.local_rank)
    return int(total - free)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


@contextmanager
def _store(world: World) -> Iterator[Any]:
    """Where ranks tell each other that their child has failed, without a collective."""
    if world.size == 1:
        yield HashStore()
        return
    port = broadcast_object(_free_port(), world)
    yield TCPStore(os.environ["MASTER_ADDR"], port, world.size, is_master=world.rank == 0)
    all_gather_object(None, world)  # the master's goes last
