"""What is done to a job, and when: each starts it, does one thing to it, and leaves nothing of it alive.

Each is a function of a job and a generator of random numbers, and returns what it did, in a few words.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress

from scalekit.distributed.fork_server import ADDRESS
from tests.faults import STEPS
from tests.faults.harness import ROWS, FaultyJob

Injection = Callable[[FaultyJob, random.Random], str]

STARTS_AGAIN = 75
CHANGES = 130
"""That rank 0's writer makes to the file system in one checkpoint, where it makes most (the least are 71)."""


def _some_steps(draw: random.Random) -> int:
    return draw.randint(1, 6)


def kill_one_rank(job: FaultyJob, draw: random.Random) -> str:
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    rank = draw.randrange(2)
    os.kill(job.rank(rank), signal.SIGKILL)
    assert job.wait(process) != 0
    return f"rank {rank}"


def kill_all_ranks(job: FaultyJob, draw: random.Random) -> str:
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    for rank in (job.rank(0), job.rank(1)):
        os.kill(rank, signal.SIGKILL)
    assert job.wait(process) != 0
    return "the ranks"


def kill_everything(job: FaultyJob, draw: random.Random) -> str:
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    job.end(process)
    return "ranks, writers and agent"


def kill_the_agent(job: FaultyJob, draw: random.Random) -> str:
    """Its ranks are nobody's then, and have to notice."""
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    process.send_signal(signal.SIGKILL)
    job.wait(process)
    return "the agent"


def start_twice(job: FaultyJob, draw: random.Random) -> str:
    """A second job is refused the folder while the first one's processes live, be they frozen."""
    job.environment = {ADDRESS: ""}  # a server of its own, which can be frozen too
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    frozen = [job.server(), job.rank(draw.randrange(2))]
    for each in frozen:
        os.kill(each, signal.SIGSTOP)
    process.send_signal(signal.SIGKILL)
    job.environment = {}
    assert "is in use by another job" in job.refused()
    for each in frozen:
        os.kill(each, signal.SIGCONT)
    job.wait(process)
    return "the agent, and a second job came"


def kill_the_server(job: FaultyJob, draw: random.Random) -> str:
    """The process that the ranks were forked from takes them with it; the launcher starts another one."""
    job.environment, job.options = {ADDRESS: ""}, ("--max-restarts", "1")
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    os.kill(job.server(), signal.SIGKILL)
    job.wait_for(lambda: "restart    1 of 1" in job.log.read_text())
    job.wait_for_checkpoint()
    job.end(process)
    job.environment, job.options = {}, ()
    return "the fork server, and then everything"


def kill_in_a_save(job: FaultyJob, draw: random.Random) -> str:
    """Everything, between two changes that a writer makes: while it writes, publishes, or deletes what is unwanted."""
    return _strike(job, draw, "all")


def kill_a_writer(job: FaultyJob, draw: random.Random) -> str:
    """The process that writes, alone: its checkpoint is lost; and the job, where it is the first."""
    return _strike(job, draw, "self")


def _strike(job: FaultyJob, draw: random.Random, whom: str) -> str:
    struck = job.folder / "struck"
    struck.unlink(missing_ok=True)
    job.environment = {"FAULT": f"{draw.randrange(2)}:{draw.randint(1, CHANGES)}:{whom}"}
    process = job.start()
    job.wait_for(struck.exists)
    if whom == "self":
        newest = job.newest
        job.wait_for(lambda: job.newest > newest or process.poll() is not None)
        job.kill()
    job.wait(process)
    job.environment = {}
    return "before " + struck.read_text().split()[0]


def ask_to_stop(job: FaultyJob, draw: random.Random) -> str:
    """By a signal to the launcher or to a rank, or by a file."""
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    how = draw.choice(["launcher", "rank", "file"])
    if how == "file":
        (job.folder / "run" / "STOP").touch()
    else:
        number = draw.choice([signal.SIGTERM, signal.SIGUSR1])
        os.kill(process.pid if how == "launcher" else job.rank(draw.randrange(2)), number)
        how = f"{number.name} to the {how}"
    code = job.wait(process)
    done = len(job.metrics)
    assert code == (0 if done == STEPS else STARTS_AGAIN), (how, job.outputs[-1])
    assert job.newest == done, (how, job.outputs[-1])
    return how


def freeze_a_rank(job: FaultyJob, draw: random.Random) -> str:
    """The watchdog says which, and where the others are; then the rank is killed."""
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    rank = draw.randrange(2)
    frozen = job.rank(rank)
    os.kill(frozen, signal.SIGSTOP)
    job.wait_for(lambda: f"rank {rank} does not answer" in job.log.read_text())
    os.kill(frozen, signal.SIGKILL)
    job.wait(process)
    assert f"rank {1 - rank} is in step" in job.outputs[-1]
    assert "File" in job.outputs[-1]
    return f"rank {rank}"


def damage_the_newest(job: FaultyJob, draw: random.Random) -> str:
    """A byte is flipped, a file cut short or deleted, in the newest checkpoint of a job that was killed."""
    process = job.start()
    job.wait_for_checkpoint()
    job.wait_for(lambda: len(job.checkpoints) > 1)
    job.end(process)
    newest = job.checkpoints[-1]
    victim = draw.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
    how = draw.choice(["flipped", "cut", "deleted"])
    content = bytearray(victim.read_bytes())
    place = draw.randrange(len(content))
    if how == "flipped":
        content[place] ^= 1 << draw.randrange(8)
        victim.write_bytes(content)
    elif how == "cut":
        victim.write_bytes(content[:place])
    else:
        victim.unlink()
    if victim.name == "MANIFEST.json" and how == "deleted":
        shutil.rmtree(newest)  # without its manifest it is no checkpoint any more, and nobody's to speak of
    else:
        job.damaged.append(newest.name)
    return f"{victim.name} {how}"


def spoil_a_row(job: FaultyJob, draw: random.Random) -> str:
    """A row of the data is broken when the job is started: it says which, and touches nothing."""
    sound = job.data.read_bytes()
    lines = sound.splitlines(keepends=True)
    number = draw.randrange(ROWS)
    how, line = draw.choice(
        [
            ("no UTF-8", lines[number].replace(b".", b"\xff")),
            ("cut", lines[number][:-4] + b"\n"),
            ("a number", b'{"text": 7}\n'),
            ("empty", b'{"text": ""}\n'),
        ]
    )
    job.data.write_bytes(b"".join([*lines[:number], line, *lines[number + 1 :]]))
    newest = job.newest
    assert job.run() != 0
    said = rf"{job.data.name}, (row {number} \()?line {number + 1}\b"
    assert re.search(said, job.outputs[-1]), (how, job.outputs[-1])
    assert job.newest == newest
    job.data.write_bytes(sound)
    return how


def restart_by_itself(job: FaultyJob, draw: random.Random) -> str:
    """`--max-restarts` starts it again when a rank is killed."""
    job.options = ("--max-restarts", "1")
    process = job.start()
    job.wait_for_steps(_some_steps(draw))
    os.kill(job.rank(draw.randrange(2)), signal.SIGKILL)
    job.wait_for(lambda: "restart    1 of 1" in job.log.read_text())
    job.wait_for_checkpoint()
    job.end(process)
    job.options = ()
    return "a rank, and then everything"


def fill_the_disk(job: FaultyJob, draw: random.Random) -> str:
    """A small disk is full for a while: what is saved then is lost, aloud, and the training continues."""
    folder, kept = job.folder / "run" / "checkpoints", job.folder / "kept"
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(kept)
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False).returncode:
        folder.rmdir()
        kept.rename(folder)
        return "not done: no file system can be mounted here"
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        process = job.start()
        job.wait_for_checkpoint()
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        job.wait_for(lambda: "could not be saved: No space left on device" in job.log.read_text())
        (folder / "filler").unlink()
        job.wait_for_checkpoint()
        job.end(process)
        assert "would be lost" in job.outputs[-1]
        shutil.rmtree(kept)
        shutil.copytree(folder, kept)
    finally:
        job.kill()
        subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()
    kept.rename(folder)
    return "for a while"


def take_the_folder_away(job: FaultyJob, draw: random.Random) -> str:
    """The folder of the checkpoints is not there for a while, as with a file server that is gone."""
    process = job.start()
    job.wait_for_checkpoint()
    folder = job.folder / "run" / "checkpoints"
    away = folder.with_name("away")
    folder.rename(away)
    job.wait_for(lambda: "could not be saved: No such file or directory" in job.log.read_text())
    away.rename(folder)
    job.wait_for_checkpoint()
    job.end(process)
    return "for a while"


ALL: dict[str, tuple[Injection, int]] = {
    "kill-one-rank": (kill_one_rank, 20),
    "kill-all-ranks": (kill_all_ranks, 10),
    "kill-everything": (kill_everything, 20),
    "kill-the-agent": (kill_the_agent, 12),
    "start-twice": (start_twice, 3),
    "kill-the-server": (kill_the_server, 4),
    "kill-in-a-save": (kill_in_a_save, 70),
    "kill-a-writer": (kill_a_writer, 10),
    "ask-to-stop": (ask_to_stop, 20),
    "freeze-a-rank": (freeze_a_rank, 5),
    "damage-the-newest": (damage_the_newest, 20),
    "spoil-a-row": (spoil_a_row, 8),
    "restart-by-itself": (restart_by_itself, 4),
    "fill-the-disk": (fill_the_disk, 4),
    "take-the-folder-away": (take_the_folder_away, 4),
}
"""By name, with how often the long form does it."""
