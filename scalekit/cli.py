"""The command line: thin, and quick to answer, because nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from scalekit import __version__
from scalekit.errors import ConfigError, PreemptedError, ScaleKitError, UnknownNameError, shown

if TYPE_CHECKING:
    from scalekit.job import Job

_ERROR_CODE = 2
_OTHER_RANKS_WAIT_SECONDS = 5.0
_SLOW_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; ScaleKit's own errors become one line and exit code 2."""
    try:
        own, rest = _split(list(sys.argv[1:] if arguments is None else arguments))
        parsed, unknown = _parser().parse_known_args(own)
        if unknown and parsed.run not in (_plan, _inspect):
            _parser().parse_args(own)
        return int(parsed.run(parsed, rest or unknown))
    except PreemptedError as error:
        return error.code
    except ScaleKitError as error:
        return _report(error)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """A command's own words, and what it passes on: settings after `fit job.yaml`, a program after `launch`'s options."""
    if words[:1] == ["launch"]:
        cut = _end_of_options(words)
        return words[:cut], words[cut + 1 if words[cut : cut + 1] == ["--"] else cut :]
    if words[:1] in (["fit"], ["prepare"]) and not {"-h", "--help"} & set(words):
        cut = 1 if words[1:2] and words[1].startswith("--") else 2
        return words[:cut], words[cut:]
    return words, []


def _end_of_options(words: list[str]) -> int:
    """The place at which `launch`'s options end, and the program that it starts begins.

    Raises:
        UnknownNameError: an option that `launch` does not have.
    """
    options = _subparser("launch")._option_string_actions
    place = 1
    while place < len(words) and words[place].startswith("-") and words[place] != "--":
        name, equals, _ = words[place].partition("=")
        if not any(option.startswith(name) for option in options):
            raise UnknownNameError("option of launch", name, [each for each in options if each.startswith("--")])
        has_value = next(action.nargs != 0 for option, action in options.items() if option.startswith(name))
        place += 2 if has_value and not equals else 1
    return min(place, len(words))


def _subparser(command: str) -> argparse.ArgumentParser:
    return _commands()[command]


def _commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (found,) = (each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(found.choices)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scalekit", description="Train any PyTorch model on any hardware, to the same numbers."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    fit = commands.add_parser("fit", help="train what a job file describes", description=_FIT, add_help=True)
    fit.add_argument("job", nargs="?", help="a YAML file whose keys are the settings of scalekit.fit")
    fit.set_defaults(run=_fit)

    plan = commands.add_parser("plan", help="predict memory and time, and choose by them", description=_PLAN)
    plan.add_argument("job", help="a job file, or a model: a hub id, a folder, or a config.json")
    plan.add_argument(
        "--hardware", default="local", help="8xH100-80GB, 64x8xH100-80GB, a YAML file, or local (default)"
    )
    plan.add_argument("--json", action="store_true", help="print everything as JSON")
    plan.add_argument("--plot", metavar="FILE.png", help="draw the memory of each candidate against the limit")
    plan.set_defaults(run=_plan)

    prepare = commands.add_parser("prepare", help="prepare a job's data, as fit does by itself", description=_PREPARE)
    prepare.add_argument("job", nargs="?", help="a YAML file whose keys are the settings of scalekit.fit")
    prepare.set_defaults(run=_prepare)

    inspect_ = commands.add_parser("inspect", help="show a job's rows as its model will see them", description=_INSPECT)
    inspect_.add_argument("job", help="a YAML file whose keys are the settings of scalekit.fit")
    inspect_.add_argument("--rows", type=int, default=3, help="rows that are shown (default: 3)")
    inspect_.add_argument("--plot", metavar="FILE.png", help="draw a histogram of the rows' lengths")
    inspect_.set_defaults(run=_inspect)

    launch = commands.add_parser("launch", help="start a job on several processes", description=_LAUNCH)
    launch.add_argument(
        "--nproc",
        default="auto",
        help="processes on each node, or the fewest and the most, 2:4 (default: one for each GPU)",
    )
    launch.add_argument("--nodes", type=int, default=1, help="nodes (default: 1)")
    launch.add_argument("--node-rank", type=int, default=0, help="which of the nodes this is, from 0")
    launch.add_argument("--endpoint", help="host:port of the first node, where several meet")
    launch.add_argument(
        "--max-restarts", type=int, default=0, help="how often a job that failed is started again (default: 0)"
    )
    launch.set_defaults(run=_launch)

    evaluate = commands.add_parser("evaluate", help="score a run's model on other rows", description=_EVALUATE)
    predict = commands.add_parser("predict", help="write what a run's model says of rows", description=_PREDICT)
    for each, run in ((evaluate, _evaluate), (predict, _predict)):
        each.add_argument(
            "run_folder",
            metavar="run",
            help="a run's folder, of which the newest checkpoint is taken, or a checkpoint's",
        )
        each.add_argument("data", help="a file, a folder or a hub id, as of fit")
        each.add_argument("--strategy", help="single, ddp or fsdp2 (default: ddp on several processes)")
        each.add_argument(
            "--micro-batch-size", type=int, default=8, help="rows that a process runs at once (default: 8)"
        )
        each.set_defaults(run=run)
    predict.add_argument("--max-new-tokens", type=int, default=64, help="of a text that is written (default: 64)")
    predict.add_argument(
        "output", metavar="output.jsonl", help="the file to write, a line for each row, in their order"
    )

    export = commands.add_parser("export", help="write a checkpoint's model for others", description=_EXPORT)
    export.add_argument("checkpoint", help="a checkpoint's folder, or a run's, of which the newest is taken")
    export.add_argument("output", help="the folder to write")
    export.add_argument("--format", default="huggingface", help="huggingface (default): what from_pretrained opens")
    export.add_argument("--merge", action="store_true", help="put an adapter into its base model")
    export.set_defaults(run=_export)

    listing = commands.add_parser("strategies", help="list the strategies")
    listing.set_defaults(run=_strategies)
    return parser


_FIT = "Trains what a job file describes. Any setting can be given as a flag, which then counts: --max_steps 100"
_PLAN = (
    "Predicts what a step costs, for every strategy, without running it. Settings are those of scalekit.plan, as flags or from "
    "the job: --global_batch_size 64 --sequence_length 4096"
)
_PREPARE = (
    "Reads, checks and encodes a job's data by all cores, and keeps it for the job. Settings are those of scalekit.fit"
)
_INSPECT = "Shows rows as the model will see them: what is cut, what padded, which tokens carry loss. Settings are those of fit"
_LAUNCH = (
    "Starts a job file or a script of yours on several processes, by torchrun: launch --nproc 2 job.yaml --max_steps 100, or "
    "launch --nproc 2 train.py. A job file is checked before any process starts."
)
_EVALUATE = (
    "Prints loss and scores over rows with labels as JSON, each row counted once; by `launch` on several processes."
)
_PREDICT = (
    "Writes the class of each row with its probability, its numbers, or how a language model goes on; rows need no labels and "
    "no answers."
)
_EXPORT = "Writes the model of a checkpoint, which is checked first, into a folder that others open."


def _fit(parsed: argparse.Namespace, rest: list[str]) -> int:
    job = _job(parsed.job, rest)
    from scalekit.training import run

    run(job)
    return 0


def _prepare(parsed: argparse.Namespace, rest: list[str]) -> int:
    from scalekit.data.inspection import known
    from scalekit.training import prepare

    print("\n".join(known(prepare(_job(parsed.job, rest)))))
    return 0


def _inspect(parsed: argparse.Namespace, rest: list[str]) -> int:
    from scalekit.data.inspection import inspection, plot
    from scalekit.training import prepare

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
    from scalekit.job import Job, read_yaml

    settings = read_yaml(path) if path else {}
    return Job.from_mapping({**settings, **_flags(rest)})


def _plan(parsed: argparse.Namespace, rest: list[str]) -> int:
    import json

    from scalekit.job import read_yaml

    settings = read_yaml(parsed.job) if _is_job_file(parsed.job) else {"model": parsed.job}
    settings = _checked_for_plan({**settings, **_flags(rest)})
    from scalekit.hardware import slow_precision_warning
    from scalekit.planning import report
    from scalekit.public import plan

    asked = _planned_by(plan, settings)
    forecast = plan(**asked, hardware=parsed.hardware, progress=_Slow())
    slow = slow_precision_warning(asked.get("precision", "auto"), forecast.task.hardware.device)
    if slow is not None:
        print(slow, file=sys.stderr)
    if parsed.plot:
        report.plot(forecast, parsed.plot)
    print(json.dumps(forecast.as_dict(), indent=2) if parsed.json else report.table(forecast))
    return 0


def _is_job_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def _checked_for_plan(settings: dict[str, Any]) -> dict[str, Any]:
    """A job's settings as `fit` would take them, and those that only a plan has as they are.

    Raises:
        ConfigError: a value that its setting does not allow.
    """
    from scalekit.job import Job, check_settings

    shared = {each.name for each in fields(Job)} & settings.keys()
    return {**settings, **check_settings({name: settings[name] for name in shared})}


def _planned_by(plan: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a plan takes; a job's others have no bearing on memory and time of a step.

    Raises:
        UnknownNameError: one that neither takes.
        ConfigError: no model among them.
    """
    from scalekit.job import Job

    taken = list(inspect.signature(plan).parameters)
    known = {*taken, *(each.name for each in fields(Job))}
    for name in settings:
        if name not in known:
            raise UnknownNameError("setting", name, known)
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


def _launch(parsed: argparse.Namespace, rest: list[str]) -> int:
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
    if words[0] not in _commands():
        raise UnknownNameError(
            "program to launch: neither a job file (.yaml) nor a script (.py) nor a command:", words[0], _commands()
        )
    if words[0] in ("fit", "prepare") and not {"-h", "--help"} & set(words):
        own, flags = _split(words)
        return words, vars(_job(own[1] if len(own) > 1 else None, flags))
    return words, None


def _evaluate(parsed: argparse.Namespace, rest: list[str]) -> int:
    import json

    from scalekit.saved_run import evaluate

    found = evaluate(parsed.run_folder, parsed.data, strategy=parsed.strategy, micro_batch_size=parsed.micro_batch_size)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))
    return 0


def _predict(parsed: argparse.Namespace, rest: list[str]) -> int:
    from scalekit.saved_run import write_predictions

    options = {name: getattr(parsed, name) for name in ("strategy", "micro_batch_size", "max_new_tokens")}
    write_predictions(parsed.run_folder, parsed.data, parsed.output, **options)
    return 0


def _export(parsed: argparse.Namespace, rest: list[str]) -> int:
    from scalekit.exporting import export

    export(parsed.checkpoint, parsed.output, parsed.format, parsed.merge)
    return 0


def _strategies(parsed: argparse.Namespace, rest: list[str]) -> int:
    from scalekit.strategies import Strategy, names

    for name in names():
        spec = Strategy.load(name)
        shared = ", ".join(spec.shards) or "nothing"
        offloaded = ", ".join(f"{what} on {where}" for what, where in spec.offload.items() if what != "nvme_path")
        print(f"{name:14} {spec.engine:10} shards {shared}" + (f"; keeps {offloaded}" if offloaded else ""))
    return 0


def _flags(rest: Sequence[str]) -> dict[str, Any]:
    """``--name value`` and ``--name=value`` pairs, whose values are read as YAML is; ``--name`` alone means true.

    Raises:
        ConfigError: something that is no such pair, or a setting without its value.
    """
    from scalekit.job import Job
    from scalekit.settings import hints_of, rule, takes_flag
    from scalekit.yaml_text import parse_yaml

    flags: dict[str, Any] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"{shown(word)} is no setting: give settings as --name value")
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not equals and (not words or words[0].startswith("--")):
            if name in hints_of(Job) and not takes_flag(hints_of(Job)[name]):
                raise ConfigError(f"--{name} has no value: {name} must be {rule(hints_of(Job)[name])}")
            flags[name] = True
        else:
            flags[name] = parse_yaml(value if equals else words.pop(0), f"the value of --{name}")
    return flags


def _report(error: ScaleKitError) -> int:
    """Says it once: torchrun ends a job when its first process ends, so another rank speaks only where rank 0 did not."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_OTHER_RANKS_WAIT_SECONDS)
    where = "" if rank == "0" else f"rank {rank}: "
    print(f"{where}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return _ERROR_CODE
