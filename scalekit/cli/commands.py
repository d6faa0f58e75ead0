"""What each command does."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from scalekit.cli.flags import own_words, settings_of
from scalekit.cli.parser import COMMANDS, build_parser
from scalekit.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from scalekit.config.settings import Job

_SLOW_SECONDS = 2.0


def fit(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Trains what a job file describes, or prints it with all settings."""
    job = _job(parsed.job, rest)
    if parsed.print_config:
        from scalekit.config.documentation import config_yaml

        print(config_yaml(job.resolved()))
        return 0
    from scalekit.training.fit import run

    run(job)
    return 0


def prepare(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Reads, checks and encodes a job's data."""
    from scalekit.data.inspection import known
    from scalekit.training.prepared_job import prepare

    print("\n".join(known(prepare(_job(parsed.job, rest)))))
    return 0


def inspect(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Shows rows as the model will see them."""
    from scalekit.data.inspection import inspection, plot
    from scalekit.training.prepared_job import prepare

    job = _job(parsed.job, rest)
    rows = prepare(job)
    for line in inspection(rows, parsed.rows, colours=sys.stdout.isatty(), seed=job.seed):
        print(line)
    if parsed.plot:
        plot(rows, parsed.plot)
    return 0


def _job(path: str | None, rest: list[str]) -> Job:
    """The job that a file and flags describe; a flag counts where both say something.

    Raises:
        ConfigError: they describe none.
    """
    from scalekit.config.job_file import JobFile
    from scalekit.config.settings import Job

    flags = settings_of(rest)
    with _warnings_in_a_line():
        return JobFile(path).job(flags) if path else Job.from_mapping(flags)


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Shows what a job file or a flag is warned of without the line of our code that does so."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", FutureWarning)
        yield
    for each in found:
        print(f"WARNING    {each.message}", file=sys.stderr)


def plan(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Predicts what a step costs."""
    import json

    settings = _plan_settings(parsed.job, settings_of(rest))
    from scalekit.api import plan
    from scalekit.hardware import slow_precision_warning
    from scalekit.planning import report

    forecast = plan(**settings, hardware=parsed.hardware, progress=_Slow())
    slow = slow_precision_warning(settings.get("precision", "auto"), forecast.task.hardware.device)
    if slow is not None:
        print(slow, file=sys.stderr)
    if parsed.plot:
        report.plot(forecast, parsed.plot)
    print(json.dumps(forecast.as_dict(), indent=2) if parsed.json else report.table(forecast))
    return 0


def _is_job_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def _plan_settings(job: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The settings that a plan takes, of a job file or a model and of flags; a job's others do not change a step's cost.

    Raises:
        UnknownNameError: one that neither a plan nor a job takes.
        ConfigError: a value that its setting does not allow; or no model.
    """
    from scalekit.config.job_file import JobFile

    if not _is_job_file(job):
        return _planned_by(flags | {"model": job})
    file = JobFile(job)
    with file.located(except_for=flags):
        return _planned_by(file.settings | flags)


def _planned_by(settings: dict[str, Any]) -> dict[str, Any]:
    from scalekit.config.renamed import understood
    from scalekit.config.settings import Job, check_settings

    with _warnings_in_a_line():
        settings = understood(settings)
    jobs = {each.name for each in fields(Job)}
    settings |= check_settings({name: value for name, value in settings.items() if name in jobs})
    from scalekit.api import PlanSettings

    taken = {each.name for each in fields(PlanSettings)}
    for name in settings:
        if name not in taken | jobs:
            raise UnknownNameError("setting", name, taken | jobs)
    if "model" not in settings:
        raise ConfigError("the job names no model")
    return {name: value for name, value in settings.items() if name in taken}


class _Slow:
    """Says on standard error what is looked at, every few seconds."""

    def __init__(self) -> None:
        self._spoke = time.monotonic()

    def __call__(self, what: str) -> None:
        if time.monotonic() - self._spoke > _SLOW_SECONDS:
            self._spoke = time.monotonic()
            print(f"looking at {what} ...", file=sys.stderr, flush=True)


def launch(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Starts a job file or a script on several processes."""
    from scalekit.distributed.launcher import Launch, launch

    placed = (parsed.nproc, parsed.nodes, parsed.node_rank, parsed.endpoint)
    settings = Launch(*placed, max_restarts=parsed.max_restarts)
    return launch(settings, *_program(rest))


def _program(words: list[str]) -> tuple[list[str], dict[str, Any] | None]:
    """What every process is to run: ``fit job.yaml`` for a job file, which is checked here; a script of the user's.

    Returns:
        Its words, and the settings of the job that it is.

    Raises:
        UnknownNameError: something that is neither, and no command either.
        ConfigError: the job is wrong; or there is none.
    """
    if not words:
        raise ConfigError("nothing to launch: give a job file or a script, such as: scalekit launch --nproc 2 job.yaml")
    if _is_job_file(words[0]):
        words = ["fit", *words]
    if words[0].endswith(".py") or words[0] == "-m":
        return words, None
    if words[0] not in COMMANDS:
        raise UnknownNameError(
            "program to launch: neither a job file (.yaml) nor a script (.py) nor a command:", words[0], COMMANDS
        )
    if words[0] in ("fit", "prepare") and not {"-h", "--help"} & set(words):
        own, flags = own_words(words)
        return words, vars(_job(own[1] if len(own) > 1 else None, flags))
    return words, None


def evaluate(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Prints loss and scores of a run's model."""
    import json

    from scalekit.training.saved_run import evaluate

    found = evaluate(parsed.run_folder, parsed.data, strategy=parsed.strategy, micro_batch_size=parsed.micro_batch_size)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))
    return 0


def predict(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Writes what a run's model says of rows."""
    from scalekit.training.saved_run import write_predictions

    options = {name: getattr(parsed, name) for name in ("strategy", "micro_batch_size", "max_new_tokens")}
    write_predictions(parsed.run_folder, parsed.data, parsed.output, **options)
    return 0


def export(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Writes a checkpoint's model for others."""
    from scalekit.exporting import export

    export(parsed.checkpoint, parsed.output, parsed.format, parsed.merge)
    return 0


def strategies(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Lists the strategies that come with ScaleKit."""
    from scalekit.config.strategy import StrategyConfig, names

    for name in names():
        spec = StrategyConfig.load(name)
        shared = ", ".join(spec.shards) or "nothing"
        offloaded = ", ".join(f"{what} on {where}" for what, where in spec.offload.items() if what != "nvme_path")
        print(f"{name:14} {spec.engine:10} shards {shared}" + (f"; keeps {offloaded}" if offloaded else ""))
    return 0


def schema(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Prints the JSON schema of job files."""
    import json

    from scalekit.config.schema import schema

    print(json.dumps(schema(), indent=2))
    return 0


def completion(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Prints a script for a shell."""
    import shtab

    print(shtab.complete(build_parser(with_settings=True), shell=parsed.shell))
    return 0
