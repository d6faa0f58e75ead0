"""Every setting refuses junk of every type by an error that names the setting, the value and the rule; and nothing is left."""

import math
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import fields
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import scalekit
from scalekit import cli, errors
from scalekit.config import names
from scalekit.config.checks import marked
from scalekit.config.job_file import JobFile
from scalekit.config.markers import MayChange
from scalekit.config.rules import hints_of, rule
from scalekit.config.settings import Job
from scalekit.models.tasks import TASKS
from tests.support.processes import ROOT

NAMES = [each.name for each in fields(Job)]
ROWS = [{"x": [float(i)], "y": [2.0 * i]} for i in range(8)]


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- junk -------------------------------------------------------------------------------------------------------------


class Empty:
    """Takes no arguments."""


def of_none() -> None:
    """Takes no arguments."""


def of_one(one: Any) -> float:
    return 1.0


def of_two(one: Any, two: Any) -> None:
    """Takes two arguments."""


def of_any(*many: Any, **named: Any) -> None:
    """Takes whatever it is given."""


FUNCTIONS = {of_none: {0}, of_one: {1}, of_two: {2}, of_any: {0, 1, 2}, len: {1}, print: {0, 1, 2}}
CLASSES = {Empty: {0}, nn.MSELoss: {0, 1, 2}}

TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "a", "no", "yes", "true", "auto", "never", "wandb", "3", "3.0", "1e-4", "nan", "-inf", "7x"]
    ),
    st.sampled_from(
        ["adanw", "cosin", "bf16-mixd", "refuze", "completion", "causal", "x" * 5000, "\0", "a/b", "1" * 400]
    ),
    st.text(max_size=8),
)
NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from([0.5, 3.0, 1e300, math.nan, math.inf, -math.inf]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
KEYS = st.sampled_from(
    ["path", "weight", "split", "mixture", "prompts", "max_new_tokens", "class", "eps", "betas", "a"]
)
NESTED = st.one_of(
    st.lists(PLAIN, max_size=3),
    st.lists(st.lists(PLAIN, max_size=2), max_size=2),
    st.dictionaries(KEYS, PLAIN, max_size=2),
    st.dictionaries(KEYS, st.lists(PLAIN, max_size=2), max_size=2),
    st.lists(st.dictionaries(KEYS, PLAIN, max_size=2), max_size=2),
    st.sampled_from(
        [
            {"prompts": ["a", [{"role": "user", "content": "b"}]]},
            {"prompts": [[{"role": "user"}]]},
            {"prompts": ["a"], "max_new_tokens": 0},
            {"path": "a", "splt": "b"},
            {"mixture": [{"path": "a", "weight": 0}]},
            {"mixture": [{"path": "a", "weight": 1}]},
            {"betas": [0.9, 0.95], "eps": "1e-8"},
            {"area": {"class": "AUROC", "task": "binary"}},
            {"area": "AUROC"},
            ["early_stopping"],
        ]
    ),
)
OTHERS = st.one_of(
    st.binary(max_size=3),
    st.sets(st.integers(0, 3), max_size=2),
    st.builds(object),
    st.sampled_from([*FUNCTIONS, *CLASSES, 1j, range(3), Path("a"), Path("/etc/hostname"), iter(())]),
    st.sampled_from([np.float32(0.5), np.float64("nan"), np.int64(2), np.int8(-1), np.bool_(True), np.zeros(2)]),
)
WRITABLE = st.one_of(PLAIN, NESTED)
JUNK = st.one_of(WRITABLE, OTHERS)

# -- what is legal, said once more and by other means -----------------------------------------------------------------


def number(value: Any) -> float | int | None:
    if isinstance(value, str):
        try:
            value = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
        except ValueError:
            return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else None


def whole(low: int, high: int = 2**31 - 1) -> Callable[[Any], bool]:
    return lambda v: (n := number(v)) is not None and n == n // 1 and low <= n <= high


def real(legal: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda v: (n := number(v)) is not None and abs(n) < 1e308 and legal(n)


def one_of(*known: Any) -> Callable[[Any], bool]:
    return lambda v: any(v is each or (isinstance(v, str) and v == each) for each in known)


def boolean(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def place(value: Any) -> bool:
    """A text or a path that can be the name of a file."""
    if isinstance(value, Path):
        return True
    return text(value) and "\0" not in value and max(len(each.encode()) for each in value.split("/")) < 256


def function(arguments: int, classes: bool = False) -> Callable[[Any], bool]:
    known = {**FUNCTIONS, **(CLASSES if classes else {})}
    return lambda v: any(v is each and arguments in taken for each, taken in known.items())


def block(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if "mixture" in value:
        parts = value["mixture"]
        return value.keys() == {"mixture"} and isinstance(parts, list) and bool(parts) and all(map(part, parts))
    maybe = ("name", "split", "revision")
    return (
        value.keys() <= {"path", *maybe, "streaming"}
        and place(value.get("path"))
        and all(value.get(key) is None or text(value[key]) for key in maybe)
    )


def part(value: Any) -> bool:
    if not isinstance(value, dict) or "weight" not in value:
        return False
    return real(lambda n: n > 0)(value["weight"]) and block({k: v for k, v in value.items() if k != "weight"})


def rows(value: Any) -> bool:
    return isinstance(value, (list, tuple, range, np.ndarray)) or hasattr(value, "__next__")


def generates(value: Any) -> bool:
    def prompt(each: Any) -> bool:
        turns = isinstance(each, list) and bool(each)
        return text(each) or (
            turns and all(isinstance(t, dict) and text(t.get("role")) and text(t.get("content")) for t in each)
        )

    return (
        isinstance(value, dict)
        and value.keys() <= {"prompts", "max_new_tokens"}
        and isinstance(value.get("prompts"), list)
        and bool(value["prompts"])
        and all(map(prompt, value["prompts"]))
        and ("max_new_tokens" not in value or whole(1)(value["max_new_tokens"]))
    )


def scores(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, dict) and text(each.get("class")) for each in value.values()
    )


def options(value: Any) -> bool:
    def option(each: Any) -> bool:
        is_list = isinstance(each, (list, tuple)) and all(real(lambda n: True)(item) for item in each)
        return each is None or boolean(each) or real(lambda n: True)(each) or is_list

    return isinstance(value, dict) and all(map(option, value.values()))


def or_none(legal: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: v is None or legal(v)


def either(*legal: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: any(each(v) for each in legal)


def limit(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return value >= 1 if isinstance(value, int) else isinstance(value, float) and 0 < value < 1


AUTO, COUNT = one_of("auto"), whole(1)
LEGAL: dict[str, Callable[[Any], bool]] = {
    "model": either(place, function(0, classes=True)),
    "data": either(place, block, rows),
    "task": or_none(one_of(*TASKS)),
    "loss": or_none(function(2)),
    "item_count": or_none(function(1)),
    "loss_couples": or_none(one_of("batch")),
    "validation": or_none(either(real(lambda n: 0 < n < 1), place, block, rows)),
    "processor": or_none(place),
    "new_tokens": or_none(lambda v: isinstance(v, (list, tuple)) and all(map(text, v))),
    "sequence_length": or_none(COUNT),
    "loss_on": one_of("all", "completions"),
    "packing": either(boolean, AUTO),
    "transform": or_none(function(1)),
    "validation_transform": or_none(function(1)),
    "sampling_rate": or_none(COUNT),
    "shuffle_buffer_size": COUNT,
    "on_bad_row": one_of("error", "skip"),
    "metrics": or_none(scores),
    "generate": or_none(generates),
    "strategy": one_of("auto", *(path.stem for path in (ROOT / "strategies").glob("*.yaml"))),
    "precision": one_of("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"),
    "global_batch_size": COUNT,
    "micro_batch_size": either(COUNT, AUTO),
    "activation_checkpointing": either(boolean, one_of("none", "selective", "full", "auto")),
    "memory_check": one_of("error", "probe", "warn"),
    "max_steps": COUNT,
    "max_epochs": real(lambda n: n > 0),
    "limit_train_batches": or_none(limit),
    "limit_val_batches": or_none(limit),
    "overfit_batches": or_none(limit),
    "fast_dev_run": either(boolean, COUNT),
    "optimizer": either(one_of("adamw", "adam", "sgd"), function(1, classes=True)),
    "optimizer_options": or_none(options),
    "learning_rate": real(lambda n: n >= 0),
    "lr_schedule": either(one_of("constant", "linear", "cosine", "wsd"), function(1)),
    "warmup_steps": whole(0),
    "weight_decay": real(lambda n: n >= 0),
    "gradient_clip": or_none(either(real(lambda n: n > 0), AUTO)),
    "gradient_clip_algorithm": one_of("norm", "value"),
    "ema_decay": or_none(real(lambda n: 0 < n < 1)),
    "seed": whole(0, 2**32 - 1),
    "devices": either(COUNT, AUTO),
    "num_nodes": either(COUNT, AUTO),
    "num_workers": either(whole(0, 1024), AUTO),
    "logger": or_none(either(one_of("wandb"), lambda v: isinstance(v, (list, tuple)) and all(map(one_of("wandb"), v)))),
    "callbacks": lambda v: isinstance(v, (list, tuple)) and not v,
    "output_dir": or_none(lambda v: place(v) and v != Path("/etc/hostname")),
    "checkpoint_every": or_none(either(COUNT, AUTO)),
    "keep_last": or_none(COUNT),
    "keep_every": or_none(COUNT),
    "keep_best": or_none(text),
    "evaluate_every": or_none(either(COUNT, real(lambda n: 0 < n < 1), one_of("epoch"))),
    "log_every_n_steps": either(COUNT, AUTO),
    "resume": one_of("auto", "never"),
    "watchdog_seconds": or_none(either(real(lambda n: n > 0), AUTO)),
    "trust_remote_code": boolean,
    "verbose": boolean,
}
BESIDE: dict[str, dict[str, Any]] = {
    "max_epochs": {"max_steps": None},
    "item_count": {"loss": of_two},
    "loss_couples": {"loss": of_two},
    "packing": {"sequence_length": 4},
    "gradient_clip_algorithm": {"gradient_clip": 1.0},
    "keep_every": {"keep_last": 1},
    "keep_best": {"keep_last": 1, "evaluate_every": 1},
}
"""What a setting needs beside it."""


def job_with(name: str, value: Any) -> dict[str, Any]:
    return {"model": "m", "data": "d", "max_steps": 1, **BESIDE.get(name, {}), name: value}


def check_refusal(name: str, value: Any, message: str) -> None:
    """Whether a message names the setting, the value and the rule."""
    assert len(message) < 1000, message
    assert "\n" not in message
    if message.startswith("give max_steps or max_epochs"):
        assert name in ("max_steps", "max_epochs")
        return
    assert name in message.split("=")[0] or f"in {name}" in message or f"unknown {name}" in message, message
    assert " must be " in message or "Known: " in message or " must " in message, message
    if isinstance(value, (Mapping, list, tuple, set, range)):
        return  # what is wrong in it is shown, or it is, in another order
    assert repr_start(value) in message or (isinstance(value, Path) and str(value) in message), message


def repr_start(value: Any) -> str:
    try:
        return repr(value)[:8]
    except ValueError:  # too many digits
        return "<int>"


# -- the properties ---------------------------------------------------------------------------------------------------


def test_every_setting_has_its_row_in_the_table() -> None:
    assert sorted(LEGAL) == sorted(NAMES)


@examples(200)
@given(value=JUNK)
def test_junk_is_refused_by_name_value_and_rule(value: Any) -> None:
    for name in NAMES:
        refused = refusal_of(partial(Job, **job_with(name, value)))
        assert (refused is None) == LEGAL[name](value), (name, value, refused)
        if refused is not None:
            check_refusal(name, value, str(refused))


@examples(12)
@given(value=WRITABLE)
def test_junk_in_a_file_and_in_flags_is_refused_in_one_line(value: Any) -> None:
    try:
        flag = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    except ValueError:  # a number of too many digits
        return
    flag = flag.removesuffix("...\n").strip("\n")
    for name in NAMES:
        beside = {key: each for key, each in job_with(name, None).items() if key != name and not callable(each)}
        Path("job.yaml").write_text(yaml.safe_dump({**beside, name: value}), encoding="utf-8")
        legal = LEGAL[name](yaml.safe_load(flag))
        refused = refusal_of(lambda: JobFile("job.yaml").job())
        assert (refused is None) == legal, (name, value, refused)
        if refused is None:
            continue
        check_refusal(name, value, str(refused))
        Path("job.yaml").write_text(yaml.safe_dump(beside), encoding="utf-8")
        assert refused_by_main("fit", "job.yaml", f"--{name}={flag}").count("\n") == 1


def refusal_of(function: Callable[[], Any]) -> errors.ScaleKitError | None:
    try:
        function()
    except errors.ScaleKitError as error:
        return error
    return None


def refused_by_main(*words: str) -> str:
    said = StringIO()
    kept, sys.stderr = sys.stderr, said
    try:
        code = cli.main(words)
    finally:
        sys.stderr = kept
    assert code == 2
    return said.getvalue()


# -- a whole job ------------------------------------------------------------------------------------------------------

BESIDE_A_FIT: dict[str, dict[str, Any]] = {
    "validation_transform": {"validation": ROWS},
    "metrics": {"validation": ROWS},
    "generate": {"validation": ROWS},
    "evaluate_every": {"validation": ROWS},
    "keep_best": {"validation": ROWS, "keep_last": 1, "evaluate_every": 1},
    "item_count": {},
}
ENDLESS = ("max_steps", "max_epochs")


def fit_with(name: str, value: Any) -> dict[str, Any]:
    usual = {"model": nn.Linear(1, 1), "data": ROWS, "loss": nn.MSELoss(), "max_steps": 1}
    return {**usual, **{**BESIDE, **BESIDE_A_FIT}.get(name, {}), name: value}


def is_accepted(name: str, value: Any) -> bool:
    if refusal_of(partial(Job, **fit_with(name, value))) is not None:
        return False
    return not (name in ENDLESS and isinstance(value, (int, float, str)) and (number(value) or 0) > 100)


def before_the_run(error: BaseException) -> bool:
    """Whether an error was raised before the training itself, which has a folder."""
    frames = traceback.extract_tb(error.__traceback__)
    return not any(frame.name == "fit" and "trainer" in frame.filename for frame in frames)


@examples(8)
@given(value=JUNK)
def test_a_job_with_one_odd_setting_runs_or_is_refused(value: Any) -> None:
    for name in NAMES:
        if is_accepted(name, value):
            ends_well(name, value)


def ends_well(name: str, value: Any) -> None:
    """A job ends in a run, or in one of ScaleKit's errors, which leaves nothing behind."""
    here = Path.cwd()
    place = here / f"job-{len(os.listdir(here))}"
    place.mkdir()
    os.chdir(place)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused = refusal_of(partial(scalekit.fit, **fit_with(name, value)))
        if refused is not None and before_the_run(refused):
            assert not os.listdir(place), (name, value, refused)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", of_any),
        ("model", nn.ReLU()),
        ("data", [None]),
        ("data", range(3)),
        ("loss", of_any),
        ("item_count", of_any),
        ("item_count", lambda batch: math.nan),
        ("validation", [None]),
        ("optimizer", of_any),
        ("optimizer", int),
        ("optimizer_options", {"betas": [2, 3]}),
        ("optimizer_options", {"betas": 2}),
        ("optimizer_options", {"betas": [0.9, 0.9, 0.9]}),
        ("optimizer_options", {"amsgrad": 1}),
        ("optimizer_options", {"eps": True}),
        ("optimizer_options", {"lr": 1.0}),
        ("optimizer_options", {"weight_decay": 1.0}),
        ("optimizer_options", {"momentum": 0.9}),
        ("lr_schedule", of_any),
        ("lr_schedule", lambda step: math.inf),
        ("warmup_steps", 1),
        ("micro_batch_size", 3),
        ("keep_best", "accurcy"),
        ("metrics", {"area": {"class": "AUROCK"}}),
        ("metrics", {"area": {"class": "AUROC"}}),
        ("generate", {"prompts": ["a"]}),
    ],
)
def test_what_libraries_refuse_is_refused_before_anything_is_trained(name: str, value: Any) -> None:
    with pytest.raises(errors.ScaleKitError) as caught:
        scalekit.fit(**fit_with(name, value))
    assert isinstance(caught.value, (errors.ConfigError, errors.ModelError, errors.DataError))
    assert not os.listdir(), caught.value


def test_an_option_is_refused_before_data_is_read() -> None:
    """The data does not even exist."""
    with pytest.raises(errors.UnknownNameError, match=r"key in optimizer_options 'beta'\. Did you mean 'betas'"):
        scalekit.fit(nn.Linear(1, 1), "missing.jsonl", max_steps=1, optimizer_options={"beta": [0.9, 0.9]})


# -- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gradient_clip": -1}, "gradient_clip=-1 must be a number above 0, 'auto' or None"),
        ({"warmup_steps": -3}, "warmup_steps=-3 must be a whole number of at least 0 (optimizer steps)"),
        ({"weight_decay": -1}, "weight_decay=-1 must be a number of at least 0"),
        ({"sequence_length": -5}, "sequence_length=-5 must be a whole number of at least 1 (tokens) or None"),
        ({"trust_remote_code": "no"}, "trust_remote_code='no' must be true or false"),
        ({"num_workers": -1}, "num_workers=-1 must be a whole number of at least 0 (processes) or 'auto'"),
        ({"learning_rate": "auto"}, "learning_rate='auto' must be a number of at least 0"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0 and at most 4294967295"),
        ({"max_steps": math.inf}, "max_steps=inf must be a whole number of at least 1"),
        ({"resume": None}, "resume=None must be 'auto', 'never' or the folder of a checkpoint"),
        ({"resume": "nevr"}, "must be 'auto', 'never' or the folder of a checkpoint. Did you mean 'never'?"),
        ({"global_batch_size": None}, "global_batch_size=None must be a whole number of at least 1 (samples)"),
        ({"callbacks": ["early_stopping"]}, "callbacks[0]='early_stopping' must be a Lightning callback"),
        ({"callbacks": None}, "callbacks=None must be a list of Lightning callbacks"),
        (
            {"logger": "tensorboard"},
            "logger='tensorboard' must be None, 'wandb', a Lightning logger, or a list of those",
        ),
        ({"logger": ["wandb", 7]}, "logger[1]=7 must be a Lightning logger or 'wandb'"),
        ({"optimizer": "adanw"}, "must be 'adamw', 'adam', 'sgd' or a function"),
        ({"generate": {"prompts": []}}, "generate.prompts=[] must be a list of at least one text or conversation"),
        ({"generate": {"prompts": ["a"], "max_new_token": 1}}, "key in generate 'max_new_token'. Did you mean"),
        ({"generate": {"max_new_tokens": 1}}, "generate has no prompts: prompts must be a list"),
        ({"generate": {"prompts": ["a"], "max_new_tokens": 0}}, "generate.max_new_tokens=0 must be a whole number"),
        ({"generate": {"prompts": [[{"role": "user"}]]}}, "generate.prompts[0][0] has no content"),
        ({"optimizer_options": {"eps": "tiny"}}, "optimizer_options.eps='tiny' must be true, false, a number"),
        (
            {"optimizer": of_one, "optimizer_options": {"eps": 1}},
            "optimizer_options are for an optimizer that is named",
        ),
        ({"lr_schedule": of_one, "warmup_steps": 1}, "warmup_steps is for a schedule that is named"),
        ({"loss": nn.MSELoss}, "must be a torch.nn loss such as nn.MSELoss()"),
        ({"data": {"path": "a", "splt": "b"}}, "unknown key in data 'splt'. Did you mean 'split'?"),
        ({"data": {"path": "a", "weight": 1}}, "given only in a mixture"),
        ({"data": {"mixture": [{"path": "a", "weight": -1}]}}, "data.mixture[0].weight=-1 must be a number above 0"),
        ({"validation": 1.5}, "validation=1.5 must be a share of the data between 0 and 1"),
        ({"num_workers": 10**9}, "num_workers=1000000000 must be a whole number of at least 0 and at most 1024"),
        (
            {"output_dir": "/etc/hostname"},
            "output_dir='/etc/hostname' must be a folder, or a path where one can be made",
        ),
        ({"output_dir": "/etc/hostname/run"}, "must be a folder, or a path where one can be made"),
        ({"output_dir": "\0"}, "must be a folder, or a path where one can be made"),
        (
            {"keep_every": 3, "checkpoint_every": 1},
            "keep_every=3 has no effect where all checkpoints stay: give keep_last too",
        ),
        ({"data": ROWS, "evaluate_every": 3}, "evaluate_every: there is no validation set"),
        ({"data": ROWS, "metrics": {"a": {"class": "AUROC"}}}, "metrics: there is no validation set"),
        ({"packing": True}, "sequence_length, the length of a packed row, is not given"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value))[:40] if isinstance(value, dict) else None,
)
def test_each_wrong_setting_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.ScaleKitError) as caught:
        Job(**{"model": "m", "data": "d", "max_steps": 1, **given})
    assert said in str(caught.value)


def test_a_name_that_is_none_is_an_error_of_its_own() -> None:
    with pytest.raises(errors.UnknownNameError, match=r"lr_schedule='cosin' must be .*Did you mean 'cosine'") as caught:
        Job("m", "d", max_steps=1, lr_schedule="cosin")
    assert caught.value.name == "cosin"


def test_values_that_lose_nothing_are_taken() -> None:
    job = Job(
        Path("m"),
        {"path": Path("d")},
        max_steps=3.0,
        learning_rate="1e-4",
        seed=np.int64(7),
        weight_decay=np.float32(0.5),
        verbose=np.bool_(True),
        optimizer_options={"betas": [0.9, "0.95"], "eps": "1e-8", "amsgrad": True},
        output_dir=Path("run"),
    )
    assert (job.model, job.data, job.output_dir) == ("m", {"path": "d"}, "run")
    assert (job.max_steps, job.learning_rate, job.seed, job.weight_decay, job.verbose) == (3, 1e-4, 7, 0.5, True)
    assert type(job.max_steps) is int
    assert type(job.seed) is int
    assert type(job.weight_decay) is float
    assert type(job.verbose) is bool
    assert job.optimizer_options == {"betas": [0.9, 0.95], "eps": 1e-8, "amsgrad": True}


def test_what_may_change_when_a_run_is_resumed_is_marked() -> None:
    saved = Job("m", "d", max_steps=1).resolved()
    assert "verbose" in marked(Job, MayChange)
    assert Job("m", "d", max_steps=2, verbose=True, num_workers=1).differences(saved) == []
    assert Job("m", "d", max_steps=2, seed=1, learning_rate=1).differences(saved) == ["learning_rate", "seed"]


def test_names_are_those_that_the_code_knows() -> None:
    from scalekit.config.precision import dtypes_for
    from scalekit.optim.optimizers import check_optimizer

    assert set(TASKS) == set(get_args(names.TaskName))
    for precision in names.PRECISIONS:
        assert dtypes_for(precision)
    for optimizer in names.OPTIMIZERS:
        check_optimizer(optimizer, 0.1, 0.0, {})


def test_every_rule_has_words() -> None:
    for name, hint in hints_of(Job).items():
        assert rule(hint), name
        assert "typing" not in rule(hint), name
        assert "<" not in rule(hint), name


def test_an_own_repr_that_fails_is_no_traceback() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(errors.ConfigError, match=r"seed=<Odd.*> must be a whole number"):
        Job("m", "d", max_steps=1, seed=Odd())


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def job_file() -> str:
    Path("job.yaml").write_text("{model: m, data: d.jsonl, max_steps: 3}")
    Path("wrong.yaml").write_text("{model: m, data: d.jsonl, max_steps: -3}")
    return "job.yaml"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "job.yaml", "--max_steps"], "--max_steps has no value: max_steps must be a whole number"),
        (["fit", "job.yaml", "--verbose", "--max_steps", "x"], "max_steps='x' must be a whole number"),
        (["fit", "job.yaml", "--verbos"], "unknown key in the job 'verbos'. Did you mean 'verbose'?"),
        (["fit", "job.yaml", "--seed", "2020-99-99"], "the value of --seed is not YAML: month must be in 1..12"),
        (["fit", "job.yaml", "--seed=["], "the value of --seed is not YAML"),
        (["fit", "job.yaml", "more"], "'more' is no setting: give settings as --name value"),
        (["fit", "wrong.yaml"], "max_steps=-3 must be a whole number"),
        (["fit", "none.yaml"], "cannot read the job none.yaml: No such file"),
        (["launch", "wrong.yaml"], "max_steps=-3 must be a whole number"),
        (["launch", "--nproc", "2", "fit", "job.yaml", "--max_steps", "x"], "max_steps='x' must be a whole number"),
        (["launch", "--nproc=2", "--", "job.yaml", "--seed", "-1"], "seed=-1 must be a whole number"),
        (["launch", "--nporc", "2", "job.yaml"], "unknown option of launch '--nporc'. Did you mean '--nproc'?"),
        (["launch", "--nproc", "2", "tain"], "'tain'. Did you mean"),
        (["launch", "--nproc", "2"], "nothing to launch: give a job file or a script"),
        (["plan", "m", "--global_batch_size", "-3"], "global_batch_size=-3 must be a whole number"),
        (["plan", "m", "--sequence_length", "many"], "sequence_length='many' must be a whole number"),
        (["plan", "wrong.yaml"], "max_steps=-3 must be a whole number"),
        (["plan", "job.yaml", "--margin", "2"], "margin=2 must be a number of at least 0 and below 1"),
    ],
)
def test_the_command_line_refuses_in_one_line(words: list[str], said: str, job_file: str) -> None:
    message = refused_by_main(*words)
    assert said in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["job.yaml"], ["fit", "job.yaml"]),
        (["--nproc", "2", "job.yaml", "--max_steps", "3"], ["fit", "job.yaml", "--max_steps", "3"]),
        (["--nproc=2", "fit", "job.yaml", "--verbose"], ["fit", "job.yaml", "--verbose"]),
        (["--nproc", "2", "--max-restarts", "1", "--", "fit", "job.yaml"], ["fit", "job.yaml"]),
        (["--nproc", "2", "train.py", "--nproc", "3", "--", "a"], ["train.py", "--nproc", "3", "--", "a"]),
        (["--", "train.py", "a"], ["train.py", "a"]),
    ],
)
def test_what_launch_starts(
    words: list[str], program: list[str], job_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    launch = "scalekit.distributed.launcher.launch"
    monkeypatch.setattr(launch, lambda place, program, job: started.append(program) or 0)
    assert cli.main(["launch", *words]) == 0
    assert started == [program]


def test_launch_refuses_a_job_at_once_and_without_torch(job_file: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "scalekit", "launch", "--nproc", "2", "wrong.yaml"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    imported = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(said) == 1
    assert said[0].startswith("ConfigError: max_steps=-3 must be a whole number of at least 1")
    assert "scalekit.config.settings" in imported
    assert not {"torch", "numpy", "transformers", "lightning"} & set(imported)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"global_batch_size": -3}, "global_batch_size=-3 must be a whole number of at least 1"),
        ({"sequence_length": "many"}, "sequence_length='many' must be a whole number of at least 1"),
        ({"optimizer": "adanw"}, "Did you mean 'adamw'?"),
        ({"precision": "bf16"}, "Did you mean 'bf16-true'?"),
        ({"margin": 1}, "margin=1 must be a number of at least 0 and below 1"),
        ({"micro_batch_size": "many"}, "micro_batch_size='many' must be"),
        ({"hardware": 8}, "hardware=8 must be a Hardware"),
        ({"trust_remote_code": "no"}, "trust_remote_code='no' must be true or false"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value))[:40] if isinstance(value, dict) else None,
)
def test_a_plan_has_the_jobs_rules(given: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        scalekit.plan("nowhere/model", **given)
    assert said in str(caught.value)
