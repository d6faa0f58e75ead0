"""A setting is written once: its signature, help, schema, file and reference come from its field."""

import inspect
import json
import subprocess
import sys
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import scalekit
from scalekit import cli
from scalekit.api import PlanSettings
from scalekit.config.documentation import config_yaml, grouped, meanings, reference
from scalekit.config.markers import Group
from scalekit.config.renamed import NAMES
from scalekit.config.rules import hints_of, markers
from scalekit.config.schema import schema
from scalekit.config.settings import Job
from scalekit.errors import ConfigError

ROOT = Path(__file__).parents[2]
SETTINGS = [each.name for each in fields(Job)]
FILE = "model: m\ndata: d.jsonl\n# a comment\nmax_steps: 3\nlearning_rate: fast\n"


@pytest.mark.parametrize("settings", [Job, PlanSettings])
def test_each_has_a_meaning_and_a_group(settings: type) -> None:
    for name, hint in hints_of(settings).items():
        assert meanings(settings)[name][0].isupper() or meanings(settings)[name].startswith("`"), name
        assert meanings(settings)[name].endswith("."), name
        assert sum(isinstance(each, Group) for each in markers(hint)) == 1, name


def test_each_is_in_one_group() -> None:
    assert sorted(each.name for _, members in grouped() for each in members) == sorted(SETTINGS)


@pytest.mark.parametrize(("function", "settings"), [(scalekit.fit, Job), (scalekit.plan, PlanSettings)])
def test_a_function_has_the_signature_and_the_meanings(function: object, settings: type) -> None:
    names = list(inspect.signature(function).parameters)
    assert sorted(names) == sorted(each.name for each in fields(settings))
    for name in names:
        assert f"\n    {name}: " in function.__doc__


def test_help_lists_all_by_group_at_once() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "scalekit", "fit", "--help"], check=True, capture_output=True, text=True
    )
    assert time.monotonic() - began < 5  # of a busy machine; test_import has the bound
    for group, members in grouped():
        assert f"\n{group.value}:\n" in done.stdout
        for each in members:
            assert f"\n  --{each.name}" in done.stdout


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == reference()


def test_a_file_with_all_settings_is_the_same_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job("m", "d.jsonl", max_steps=3)
    assert yaml.safe_load(config_yaml(job.resolved())) == job.resolved()
    (tmp_path / "job.yaml").write_text("{model: m, data: d.jsonl, max_steps: 3}")
    assert cli.main(["fit", str(tmp_path / "job.yaml"), "--print-config", "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    assert Job.from_mapping(yaml.safe_load(printed)).resolved() == replace(job, seed=5).resolved()
    assert "# The seed of initial weights, order and dropout.\nseed: 5\n" in printed


def test_the_schema_knows_names_choices_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(schema()))
    properties = printed["properties"]
    assert sorted(properties) == sorted(SETTINGS)
    assert properties["max_steps"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
    assert properties["loss_on"]["enum"] == ["all", "completions"]
    assert {"enum": ["auto"]} in properties["packing"]["anyOf"]
    assert properties["learning_rate"]["default"] == 5e-5
    assert printed["required"] == ["model"]


@pytest.mark.parametrize("name", ["data", "limit_train_batches", "limit_val_batches", "overfit_batches", "validation"])
def test_the_schema_refuses_nothing_that_a_rule_in_words_takes(name: str) -> None:
    assert {} in _alternatives(schema()["properties"][name])


@pytest.mark.parametrize("name", ["item_count", "transform", "loss"])
def test_the_schema_knows_what_no_file_can_hold(name: str) -> None:
    assert schema()["properties"][name]["type"] == "null"


def _alternatives(allowed: dict[str, Any]) -> list[dict[str, Any]]:
    return [inner for each in allowed.get("anyOf", ()) for inner in (_alternatives(each) or [each])]


def test_a_shell_completes_settings_and_their_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--ema_decay" in script
    assert "bf16-mixed" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        (FILE, [], "learning_rate='fast' must be a number of at least 0 ({}, line 5)"),
        (FILE.replace("learning_rate", "learnin_rate"), [], "'learnin_rate'. Did you mean 'learning_rate'?"),
        (FILE.replace("learning_rate", "learnin_rate"), [], "({}, line 5)"),
        (FILE.replace("fast", "1") + "generate: {prompt: [a]}\n", [], "({}, line 6)"),
        (FILE + "seed: 1\nseed: 2\n", [], "the key 'seed' stands twice in \"{}\", line 1"),
        (FILE + "seed: [\n", [], 'in "{}", line 7'),
    ],
)
def test_what_is_wrong_in_a_file_has_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, flags: list[str], said: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    for command in ("fit", "plan"):
        assert cli.main([command, str(file), *flags]) == 2
        assert said.format(file) in capsys.readouterr().err


def test_a_flag_is_not_taken_for_the_files_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text(FILE)
    assert cli.main(["fit", str(tmp_path / "job.yaml"), "--learning_rate", "slow"]) == 2
    said = capsys.readouterr().err
    assert "learning_rate='slow'" in said
    assert "line" not in said


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_an_old_name_is_understood_with_a_warning(old: str, new: str) -> None:
    value = {"ema_decay": 0.9, "lr_schedule": "linear"}.get(new, 7)
    with pytest.warns(FutureWarning, match=f"{old} is called {new} now"):
        job = Job.from_mapping({"model": "m", "data": "d", "max_steps": 1, old: value})
    assert getattr(job, new) == value
    with pytest.raises(ConfigError, match=f"{old} is the old name of {new}"):
        Job.from_mapping({"model": "m", "data": "d", "max_steps": 1, old: value, new: value})
    with pytest.warns(FutureWarning, match=old), pytest.raises(ConfigError, match=f"{new}=-1 must be"):
        scalekit.fit("m", "d", max_steps=1, **{old: -1})


def test_an_old_name_in_a_file_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("{model: m, data: d.jsonl, max_steps: 3, workers: 2}")
    assert cli.main(["fit", str(tmp_path / "job.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().err == "WARNING    the setting workers is called num_workers now\n"


def test_other_ranks_leave_that_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Job.from_mapping({"model": "m", "data": "d", "max_steps": 1, "workers": 2}).num_workers == 2


def test_a_run_that_was_saved_by_old_names_is_the_same_job() -> None:
    job = Job("m", "d", max_steps=1, ema_decay=0.9, lr_schedule="linear")
    saved = job.resolved() | {"memory_check": "refuse", "on_bad_row": "refuse"}
    old = {next((o for o, n in NAMES.items() if n == name), name): value for name, value in saved.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert job.differences(old) == []
