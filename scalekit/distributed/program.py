"""A Python program as a command line has it, run within a process that has begun already; and what it will import."""

from __future__ import annotations

import ast
import builtins
import json
import os
import runpy
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HEAVY = ("torch", "lightning", "transformers", "datasets", "deepspeed", "peft", "torchvision", "torchaudio")
"""What a script is looked through for. Its own modules are its own: they may do anything when they are imported."""


@dataclass(frozen=True)
class Program:
    """What a process runs.

    Attributes:
        words: as they follow ``python``: ``train.py ...``, ``-m module ...`` or ``-c code ...``.
        environment: all of it. What libraries read as they are loaded comes too late.
        directory: where it runs.
        name: of its process, at most 15 characters.
        own_session: whether signals from the keyboard pass it by.
    """

    words: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    name: str = "python"
    own_session: bool = False

    def enter(self) -> None:
        """Gives this process the program's environment and directory."""
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.directory)
        own = self.environment.get("PYTHONPATH", "")
        sys.path[:0] = [path for path in own.split(os.pathsep) if path and path not in sys.path]
        threads = self.environment.get("OMP_NUM_THREADS", "")
        if threads.isdigit() and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(int(threads))

    def run(self) -> None:
        """As ``python`` would.

        Raises:
            SystemExit: the program's own, or 1 after an error, which has been printed then.
        """
        try:
            _run(list(self.words))
        except SystemExit:  # `PreemptedError` is an `Exception` too
            raise
        except Exception as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_frame.f_code.co_filename in (
                __file__,
                runpy.__file__,
                "<frozen runpy>",
            ):
                trace = trace.tb_next
            sys.excepthook(type(error), error.with_traceback(trace), trace)
            raise SystemExit(1) from None


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    # It stays where it is when the program has run: what is pickled, and what ends later, finds its names there.
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins)
    if words[0] == "-c":
        sys.argv, source, file = ["-c", *words[2:]], words[1], "<string>"
        sys.path.insert(0, "")
    else:
        path = Path(words[0]).absolute()
        sys.argv, source, file = words, path.read_text(encoding="utf-8"), str(path)
        sys.path.insert(0, str(path.resolve().parent))
        main.__file__ = file
    sys.modules["__main__"] = main
    exec(compile(source, file, "exec"), main.__dict__)


def imports(words: Sequence[str], job: Mapping[str, Any] | None = None) -> list[str]:
    """The heavy modules that a program will import.

    Args:
        words: of the program.
        job: the settings of the job, where it is one.
    """
    if job is not None:
        return list(_of_job(job))
    if words and words[0].endswith(".py"):
        return list(dict.fromkeys(_of_script(Path(words[0]))))
    return []


def _of_job(job: Mapping[str, Any]) -> Iterator[str]:
    yield "scalekit.training.fit"
    model = job.get("model")
    if isinstance(model, str):
        yield from ("datasets", "transformers.models.auto.modeling_auto")
        with suppress(OSError, ValueError):
            kind = json.loads((Path(model) / "config.json").read_text()).get("model_type")
            yield f"transformers.models.{kind}.modeling_{kind}"
    if str(job.get("strategy", "auto")).startswith("zero") and not has_gpu_driver():
        yield "deepspeed.runtime.zero.muon.muon_optimizer"  # deepspeed asks the driver for GPUs while it is imported
    if job.get("logger") == "wandb":
        yield "wandb"


def _of_script(script: Path) -> Iterator[str]:
    """The heavy modules that it names at its top level; none of a script that cannot be read, which fails by itself."""
    try:
        body = ast.parse(script.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return
    for each in body:
        names = [alias.name for alias in each.names] if isinstance(each, ast.Import) else []
        if isinstance(each, ast.ImportFrom) and each.module and not each.level:
            names = [each.module]
        for name in names:
            root = name.partition(".")[0]
            if root in _HEAVY and (root != "deepspeed" or not has_gpu_driver()):
                yield name
            elif root == "scalekit":
                yield from ("scalekit.training.fit", name)


def has_gpu_driver() -> bool:
    """Whether this system may have GPUs, without asking its driver."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
