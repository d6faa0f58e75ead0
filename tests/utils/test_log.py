"""The log of a job: what stands on the screen, and what in log.txt alone."""

import importlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from _pytest.logging import LogCaptureHandler

from scalekit.utils.log import alarm, detail, duration, hear, job_log, log, warn
from scalekit.utils.log_handlers import WANDB, line

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """Loggers as they were before the test, which has to leave them so; and warnings as they are outside of pytest."""
    importlib.import_module("transformers.utils.logging").get_logger()
    names = ("scalekit", "DeepSpeed", "transformers", "lightning.pytorch", WANDB)
    before = handlers(names)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda *told: print(warnings.formatwarning(*told[:4]), file=sys.stderr)
        yield
    assert handlers(names) == before


def handlers(names: Sequence[str]) -> dict[str, list[logging.Handler]]:
    """Those of loggers, but for pytest's."""
    found = {name: logging.getLogger(name).handlers for name in names}
    return {name: [h for h in each if not isinstance(h, LogCaptureHandler)] for name, each in found.items()}


def everything() -> None:
    """One of each that speaks in a job."""
    log("run", "runs/first")
    detail("types", "float32")
    warn("a checkpoint is lost")
    logging.getLogger("DeepSpeed").warning("deepspeed's advice")
    logging.getLogger("DeepSpeed").error("deepspeed's error")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").info("lightning's tip")
    logging.getLogger("transformers.modeling_utils").warning("a head is new")
    logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found")
    logging.getLogger(WANDB).info("wandb: Run history")
    warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning)
    warnings.warn("your loader is slow", UserWarning)
    print("a user's own")


ON_SCREEN = (
    "run        runs/first",
    "WARNING    a checkpoint is lost",
    "deepspeed's error",
    "WARNING    transformers.modeling_utils: a head is new",
    "your loader is slow",
    "a user's own",
)
IN_FILE_ALONE = (
    "types      float32",
    "deepspeed's advice",
    "lightning's tip",
    "No CUDA runtime is found",
    "wandb: Run history",
    "LeafSpec",
)


def said(captured: Captured) -> str:
    out, err = captured.readouterr()
    return out + err


def test_labels_are_aligned() -> None:
    assert line("run", "here") == "run        here"
    assert line("WARNING", "here").index("here") == line("", "here").index("here")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (45, "45 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 4 * 3600 + 99, "3 d 4 h"),
    ],
)
def test_times_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_screen_shows_what_one_can_act_on_and_the_file_everything(tmp_path: Path, capsys: Captured) -> None:
    with job_log(0) as job:
        everything()  # before there is a folder
        job.open(tmp_path)
        log("result", "done")
    screen, file = said(capsys), (tmp_path / "log.txt").read_text()
    for text in ON_SCREEN:
        assert text in screen
    for text in IN_FILE_ALONE:
        assert text not in screen
    for text in (*ON_SCREEN[:-1], *IN_FILE_ALONE, "result     done"):
        assert text.removeprefix("WARNING    transformers.modeling_utils: ") in file
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  |  ", line) for line in file.splitlines())


def test_a_verbose_job_shows_everything(capsys: Captured) -> None:
    with job_log(0, is_verbose=True):
        everything()
    screen = said(capsys)
    for text in (*ON_SCREEN, *IN_FILE_ALONE):
        assert text in screen


def test_other_ranks_say_what_is_wrong_alone(tmp_path: Path, capsys: Captured) -> None:
    with job_log(1) as job:
        job.open(tmp_path)
        everything()
        alarm("no progress")
    assert not list(tmp_path.iterdir())
    screen = said(capsys)
    for text in ("deepspeed's error", "a user's own", "WARNING    no progress"):
        assert text in screen
    assert len(screen.splitlines()) == 3


def fail(folder: Path, number: int) -> None:
    with job_log(0) as job:
        job.open(folder)
        log("run", f"number {number}")
        1 / 0  # noqa: B018


def test_a_job_that_resumes_appends_and_its_end_is_written(tmp_path: Path) -> None:
    for number in (1, 2):
        with pytest.raises(ZeroDivisionError):
            fail(tmp_path, number)
    file = (tmp_path / "log.txt").read_text()
    assert re.findall(r"number \d", file) == ["number 1", "number 2"]
    assert file.count("ZeroDivisionError: division by zero") == 2
    assert "Traceback" in file


def test_a_full_disk_does_not_end_a_job(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with job_log(0) as job:
        job.open(tmp_path)
        log("run", "goes on")
    assert "goes on" in said(capsys)


def test_a_job_that_is_refused_before_it_has_a_folder_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), job_log(0):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_imported_during_a_job_is_heard(tmp_path: Path, capsys: Captured) -> None:
    library, own = logging.getLogger("DeepSpeed"), logging.StreamHandler()
    before = handlers(["DeepSpeed"])["DeepSpeed"]
    with job_log(0) as job:
        library.addHandler(own)  # as its import does
        hear("DeepSpeed")
        job.open(tmp_path)
        library.warning("deepspeed's advice")
    assert handlers(["DeepSpeed"])["DeepSpeed"] == [*before, own]
    library.removeHandler(own)
    assert "advice" not in said(capsys)
    assert (tmp_path / "log.txt").read_text().count("advice") == 1
