"""What is done to a job, and when: each a function of a job and a generator of random numbers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.faults import STEPS
from tests.faults.harness import PATIENCE_SECONDS, STARTS_AGAIN, FaultyJob, wait_until

Injection = Callable[[FaultyJob, random.Random], None]


def _some_step(draw: random.Random) -> int:
    return draw.randint(1, STEPS - 2)


def kill_one_rank(job: FaultyJob, draw: random.Random) -> None:
    process = job.start()
    job.wait_for_step(_some_step(draw))
    os.kill(job.rank(draw.randrange(2)), signal.SIGKILL)
    assert job.wait(process) != 0


def kill_all_ranks(job: FaultyJob, draw: random.Random) -> None:
    process = job.start()
    job.wait_for_step(_some_step(draw))
    for rank in (job.rank(0), job.rank(1)):
        os.kill(rank, signal.SIGKILL)
    assert job.wait(process) != 0


def kill_everything(job: FaultyJob, draw: random.Random) -> None:
    process = job.start()
    job.wait_for_step(_some_step(draw))
    for each in job.processes():
        os.kill(each, signal.SIGKILL)
    job.wait(process)


def kill_the_agent(job: FaultyJob, draw: random.Random) -> None:
    """Its ranks are nobody's then, and have to notice."""
    process = job.start()
    job.wait_for_step(_some_step(draw))
    process.kill()
    job.wait(process)


def kill_in_a_save(job: FaultyJob, draw: random.Random) -> None:
    """Everything, between two changes that a writer makes: while it writes, publishes, or deletes what is unwanted."""
    job.environment = {"FAULT": f"{draw.randrange(2)}:{draw.randint(1, 160)}", "FAULT_KILLS": "all"}
    job.run()


def kill_a_writer(job: FaultyJob, draw: random.Random) -> None:
    """The process that writes, alone: its checkpoint is lost, or the job, where it is the first."""
    job.environment = {"FAULT": f"{draw.randrange(2)}:{draw.randint(60, 160)}", "FAULT_KILLS": "self"}
    job.run()


def ask_to_stop(job: FaultyJob, draw: random.Random) -> None:
    """By a signal to the launcher or to a rank, or by a file."""
    process = job.start()
    job.wait_for_step(_some_step(draw))
    how = draw.choice(["launcher", "rank", "file"])
    if how == "file":
        (job.folder / "run" / "STOP").touch()
    else:
        number = draw.choice([signal.SIGTERM, signal.SIGUSR1])
        os.kill(process.pid if how == "launcher" else job.rank(draw.randrange(2)), number)
    code = job.wait(process)
    done = len(job.metrics)
    assert code == (0 if done == STEPS else STARTS_AGAIN), (how, job.outputs[-1])
    assert job.checkpoints[-1].name == f"step-{done:08d}", (how, job.outputs[-1])


def freeze_a_rank(job: FaultyJob, draw: random.Random) -> None:
    """The watchdog says which, and where the others are; then the rank is killed."""
    process = job.start()
    job.wait_for_step(draw.randint(1, STEPS - 8))
    rank = draw.randrange(2)
    frozen = job.rank(rank)
    os.kill(frozen, signal.SIGSTOP)
    log = job.folder / f"output-{len(job.outputs)}.txt"
    spoke = wait_until(lambda: f"rank {rank} does not answer" in log.read_text(), 60)
    os.kill(frozen, signal.SIGKILL)
    job.wait(process)
    assert spoke, job.outputs[-1]
    assert f"rank {1 - rank} is in step" in job.outputs[-1]
    assert "File" in job.outputs[-1]


def damage_the_newest(job: FaultyJob, draw: random.Random) -> None:
    """A byte is flipped, a file cut short or deleted, in the newest checkpoint of a job that was killed."""
    process = job.start()
    _until(lambda: len(job.checkpoints) > 1)
    for each in job.processes():
        os.kill(each, signal.SIGKILL)
    job.wait(process)
    newest = job.checkpoints[-1]
    victim = draw.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
    how = draw.choice(["flip", "cut", "delete"])
    content = bytearray(victim.read_bytes())
    place = draw.randrange(len(content))
    if how == "flip":
        content[place] ^= 1 << draw.randrange(8)
        victim.write_bytes(content)
    elif how == "cut":
        victim.write_bytes(content[:place])
    else:
        victim.unlink()
    if victim.name == "MANIFEST.json" and how == "delete":
        shutil.rmtree(newest)  # without its manifest it is no checkpoint any more, and nobody's to speak of


def restart_by_itself(job: FaultyJob, draw: random.Random) -> None:
    """`--max-restarts` starts it again when a rank is killed."""
    job.options = ("--max-restarts", "1")
    process = job.start()
    job.wait_for_step(_some_step(draw))
    os.kill(job.rank(draw.randrange(2)), signal.SIGKILL)
    assert job.wait(process) == 0, job.outputs[-1]


def fill_the_disk(job: FaultyJob, draw: random.Random) -> None:
    """A small disk is full for a while: what is saved then is lost, aloud, and the training goes on."""
    folder = job.folder / "run" / "checkpoints"
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        process = job.start()
        log = job.folder / f"output-{len(job.outputs)}.txt"
        _until(lambda: bool(job.checkpoints))
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        _until(lambda: "could not be saved: No space left on device" in log.read_text())
        (folder / "filler").unlink()
        assert job.wait(process) == 0, job.outputs[-1]
        assert "would be lost" in job.outputs[-1]
        shutil.copytree(folder, job.folder / "kept")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.copytree(job.folder / "kept", folder, dirs_exist_ok=True)


def take_the_folder_away(job: FaultyJob, draw: random.Random) -> None:
    """The folder of the checkpoints is not there for a while, as with a file server that is gone."""
    process = job.start()
    log = job.folder / f"output-{len(job.outputs)}.txt"
    _until(lambda: bool(job.checkpoints))
    folder = job.folder / "run" / "checkpoints"
    away = folder.with_name("away")
    folder.rename(away)
    _until(lambda: "could not be saved: No such file or directory" in log.read_text())
    away.rename(folder)
    assert job.wait(process) == 0, job.outputs[-1]


def _until(condition: Callable[[], bool]) -> None:
    if not wait_until(condition, PATIENCE_SECONDS):
        raise AssertionError("it did not happen")


ALL: dict[str, tuple[Injection, int]] = {
    "kill-one-rank": (kill_one_rank, 20),
    "kill-all-ranks": (kill_all_ranks, 10),
    "kill-everything": (kill_everything, 20),
    "kill-the-agent": (kill_the_agent, 15),
    "kill-in-a-save": (kill_in_a_save, 70),
    "kill-a-writer": (kill_a_writer, 10),
    "ask-to-stop": (ask_to_stop, 25),
    "freeze-a-rank": (freeze_a_rank, 5),
    "damage-the-newest": (damage_the_newest, 20),
    "restart-by-itself": (restart_by_itself, 5),
    "fill-the-disk": (fill_the_disk, 5),
    "take-the-folder-away": (take_the_folder_away, 5),
}
"""By name, with how often the long form does it."""
