"""The commands, their options, and their help."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence

from scalekit import __version__

LAUNCH_OPTIONS = {
    "nproc": ("auto", "processes on each node, or the fewest and the most, 2:4 (default: one for each GPU)"),
    "nodes": (1, "nodes (default: 1)"),
    "node-rank": (0, "which of the nodes this is, from 0"),
    "endpoint": (None, "host:port of the first node, where several meet"),
    "max-restarts": (0, "how often a job that failed is started again (default: 0)"),
}
_JOB = "a YAML file whose keys are settings"
_PASS_ON = "A flag overrides the job file: --max_steps 100."
COMMANDS = {
    "fit": ("train what a job file describes", f"Trains what a job file describes. {_PASS_ON}"),
    "plan": (
        "predict memory and time, and choose by them",
        "Predicts what a step costs, for every strategy, without running it. Settings are those of scalekit.plan, as flags or "
        "from the job: --global_batch_size 64 --sequence_length 4096",
    ),
    "prepare": (
        "prepare a job's data, as fit does by itself",
        "Reads, checks and encodes a job's data on all cores, and keeps it for the job. Settings are those of fit.",
    ),
    "inspect": (
        "show a job's rows as its model will see them",
        "Shows rows as the model will see them: what is truncated, what is padded, which tokens carry loss. Settings are those "
        "of fit.",
    ),
    "launch": (
        "start a job on several processes",
        "Starts a job file or a script of yours on several processes, by torchrun: launch --nproc 2 job.yaml --max_steps 100, "
        "or launch --nproc 2 train.py. A job file is checked before any process starts.",
    ),
    "evaluate": (
        "score a run's model on other rows",
        "Prints loss and scores over rows with labels as JSON, each row counted once; by `launch` on several processes.",
    ),
    "predict": (
        "write what a run's model says of rows",
        "Writes the class of each row with its probability, its numbers, or the continuation of a language model; rows need "
        "no labels and no answers.",
    ),
    "export": (
        "write a checkpoint's model for others",
        "Writes the model of a checkpoint, which is checked first, into a folder that others open.",
    ),
    "strategies": ("list the strategies", "Lists the strategies that come with ScaleKit."),
    "schema": (
        "print the JSON schema of job files, for editors",
        "Prints the JSON schema of job files, by which editors complete names and choices: scalekit schema > job.schema.json",
    ),
    "completion": (
        "print a script that completes commands and settings in a shell",
        "Prints a script that completes commands, settings and their choices: scalekit completion bash >> ~/.bashrc",
    ),
}


def build_parser(words: Sequence[str] = (), with_settings: bool | None = None) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        words: of the command line; settings are listed where it asks for help.
        with_settings: whether `fit` and others have their settings as options.
    """
    lists = bool({"-h", "--help"} & set(words)) if with_settings is None else with_settings
    parser = argparse.ArgumentParser(
        "scalekit", description="Train any PyTorch model on any hardware, to the same numbers."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    made = {
        name: commands.add_parser(name, help=short, description=long, formatter_class=_wide)
        for name, (short, long) in COMMANDS.items()
    }
    _add_options(made)
    if lists:
        for name in ("fit", "prepare", "inspect", "plan"):
            if with_settings or name in words:
                _add_settings(made[name])
    return parser


def _wide(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=30, width=min(120, shutil.get_terminal_size().columns))


def _add_options(commands: dict[str, argparse.ArgumentParser]) -> None:
    fit, plan, prepare, inspect = (commands[name] for name in ("fit", "plan", "prepare", "inspect"))
    for each in (fit, prepare):
        each.add_argument("job", nargs="?", help=_JOB)
    fit.add_argument("--print-config", action="store_true", help="print the job with all settings, and train nothing")
    plan.add_argument("job", help="a job file, or a model: a hub id, a folder, or a config.json")
    plan.add_argument(
        "--hardware", default="local", help="8xH100-80GB, 64x8xH100-80GB, a YAML file, or local (default)"
    )
    plan.add_argument("--json", action="store_true", help="print everything as JSON")
    plan.add_argument("--plot", metavar="FILE.png", help="draw the memory of each candidate against the limit")
    inspect.add_argument("job", help=_JOB)
    inspect.add_argument("--rows", type=int, default=3, help="rows that are shown (default: 3)")
    inspect.add_argument("--plot", metavar="FILE.png", help="draw a histogram of the rows' lengths")
    for name, (default, text) in LAUNCH_OPTIONS.items():
        commands["launch"].add_argument(
            f"--{name}", default=default, type=str if default is None else type(default), help=text
        )
    _add_options_of_runs(commands["evaluate"], commands["predict"], commands["export"])
    commands["completion"].add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _add_options_of_runs(
    evaluate: argparse.ArgumentParser, predict: argparse.ArgumentParser, export: argparse.ArgumentParser
) -> None:
    for each in (evaluate, predict):
        each.add_argument(
            "run_folder", metavar="run", help="a run's folder, whose newest checkpoint is taken, or a checkpoint's"
        )
        each.add_argument("data", help="a file, a folder or a hub id, as of fit")
        each.add_argument("--strategy", help="single, ddp or fsdp2 (default: ddp on several processes)")
        each.add_argument(
            "--micro-batch-size", type=int, default=8, help="rows that a process runs at once (default: 8)"
        )
    predict.add_argument("--max-new-tokens", type=int, default=64, help="of a text that is written (default: 64)")
    predict.add_argument(
        "output", metavar="output.jsonl", help="the file to write, a line for each row, in their order"
    )
    export.add_argument("checkpoint", help="a checkpoint's folder, or a run's, of which the newest is taken")
    export.add_argument("output", help="the folder to write")
    export.add_argument("--format", default="huggingface", help="huggingface (default): what from_pretrained opens")
    export.add_argument("--merge", action="store_true", help="put an adapter into its base model")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Lists the settings by what they are about; their values are read by `flags`."""
    from scalekit.config.documentation import default_of, grouped, meanings
    from scalekit.config.rules import choices_of, hints_of, rule
    from scalekit.config.settings import Job

    parser.usage = f"{parser.prog} JOB [--SETTING VALUE ...]"
    meaning, hints = meanings(Job), hints_of(Job)
    taken = {option for action in parser._actions for option in action.option_strings}
    for group, members in grouped():
        section = parser.add_argument_group(group.value)
        for each in members:
            text = f"{meaning[each.name]} Must be {rule(hints[each.name])}; default: {default_of(each)}"
            if f"--{each.name}" not in taken:
                section.add_argument(
                    f"--{each.name}",
                    metavar="VALUE",
                    help=text.replace("``", "").replace("%", "%%"),
                    choices=choices_of(hints[each.name]) or None,
                )
