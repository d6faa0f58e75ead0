"""Which words are a command's own, and which are settings or a program to start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scalekit.cli.parser import LAUNCH_OPTIONS
from scalekit.config.checks import takes_flag
from scalekit.config.rules import hints_of, rule
from scalekit.config.settings import Job
from scalekit.errors import ConfigError, UnknownNameError, shown
from scalekit.utils.yaml_text import parse_yaml

_PRINT = "--print-config"


def own_words(words: list[str]) -> tuple[list[str], list[str]]:
    """A command's own words, and what it passes on: settings after `fit job.yaml`, a program after `launch`'s options."""
    if words[:1] == ["launch"]:
        cut = _end_of_options(words)
        return words[:cut], words[cut + 1 if words[cut : cut + 1] == ["--"] else cut :]
    if words[:1] in (["fit"], ["prepare"]) and not {"-h", "--help"} & set(words):
        cut = 1 if words[1:2] and words[1].startswith("--") else 2
        own = [word for word in words[cut:] if word == _PRINT]
        return [*words[:cut], *own], [word for word in words[cut:] if word != _PRINT]
    return words, []


def _end_of_options(words: list[str]) -> int:
    """The place at which `launch`'s options end, and the program that it starts begins.

    Raises:
        UnknownNameError: an option that `launch` does not have.
    """
    options = {"-h": False, "--help": False, **{f"--{name}": True for name in LAUNCH_OPTIONS}}
    place = 1
    while place < len(words) and words[place].startswith("-") and words[place] != "--":
        name, equals, _ = words[place].partition("=")
        if not any(option.startswith(name) for option in options):
            raise UnknownNameError("option of launch", name, [each for each in options if each.startswith("--")])
        has_value = next(needs for option, needs in options.items() if option.startswith(name))
        place += 2 if has_value and not equals else 1
    return min(place, len(words))


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """``--name value`` and ``--name=value`` pairs, whose values are read as YAML is; ``--name`` alone means true.

    Raises:
        ConfigError: something that is no such pair, or a setting without its value.
    """
    found: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"{shown(word)} is no setting: give settings as --name value")
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not equals and (not left or left[0].startswith("--")):
            if name in hints_of(Job) and not takes_flag(hints_of(Job)[name]):
                raise ConfigError(f"--{name} has no value: {name} must be {rule(hints_of(Job)[name])}")
            found[name] = True
        else:
            found[name] = parse_yaml(value if equals else left.pop(0), f"the value of --{name}")
    return found
