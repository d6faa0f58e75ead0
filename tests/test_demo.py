"""The demo as `make demo` runs it, the same job file and command, with fewer steps: its log is the one in the README."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import ROOT, run

EXAMPLES = ROOT / "examples"
FEWER = ["--max_steps", "3", "--warmup_steps", "1", "--validation", "0.005"]
ONE_SCREEN = 30
CHATTER = (
    "accelerator",
    "CUDA",
    "wandb: ",
    "Gloo",
    "it/s]",
    "GPU available",
    "Warning",
    "LeafSpec",
    "built successfully",
)


@dataclass(frozen=True)
class Demo:
    """What a run of the demo has left.

    Attributes:
        screen: what it showed.
        folder: where it ran.
        extensions: where torch keeps what it has compiled.
    """

    screen: str
    folder: Path
    extensions: Path

    @property
    def file(self) -> str:
        return (self.folder / "runs" / "finetune" / "log.txt").read_text()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder, extensions = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("torch") / "extensions"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run([sys.executable, str(EXAMPLES / "prepare_finetune.py")], 300)
        command = [sys.executable, "-m", "scalekit", *_words()[1:], *FEWER]
        screen = run(command, 600, TORCH_EXTENSIONS_DIR=str(extensions))
    return Demo(screen, folder, extensions)


def _words() -> list[str]:
    """The Makefile's own command, of which the job file is found anywhere."""
    makefile = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"@\$\(SCALEKIT\)( launch .*)", makefile)
    return [str(ROOT / word) if word.endswith(".yaml") else word for word in ("scalekit", *command.split())]


def _shapes(log: str) -> list[str]:
    """The lines of a log, numbers and times aside."""
    numbers = re.sub(r"\d[\d,]*(\.\d+)?(e[+-]\d+)?[KMBT]?", "#", log)
    numbers = re.sub(r"done \w{3} # \w{3} at", "done at", numbers)  # on another day
    numbers = re.sub(r"^time +# s a step where .*\n", "", numbers, flags=re.MULTILINE)  # too short a job has none
    times = re.sub(r"# (d|h|min|s)( # (h|min|s))?(?=,| left|$)", "# s", numbers, flags=re.MULTILINE)
    return [re.sub(r" +", " ", line).strip() for line in times.splitlines()]


def test_the_log_is_the_one_that_the_readme_shows(demo: Demo) -> None:
    readme = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"<!-- the demo's log -->\n+```\n(.*?)```", readme, flags=re.DOTALL)
    steps = "step #/#"
    told, expected = _shapes(demo.screen), _shapes(shown)
    assert [line for line in told if steps not in line] == [line for line in expected if steps not in line]
    assert {line for line in told if steps in line} == {line for line in expected if steps in line}


def test_the_log_fits_on_a_screen_and_holds_no_chatter(demo: Demo) -> None:
    assert len(demo.screen.splitlines()) <= ONE_SCREEN
    assert max(map(len, demo.screen.splitlines())) <= 140
    assert [word for word in CHATTER if word in demo.screen] == []


def test_the_file_holds_everything(demo: Demo) -> None:
    for line in demo.screen.splitlines():
        assert line.strip() in demo.file
    for text in ("INFO DeepSpeed: ", "wandb: Run summary:", "GPU available", "LeafSpec", "types      parameters"):
        assert text in demo.file


def test_training_on_processors_compiles_nothing(demo: Demo) -> None:
    assert not demo.extensions.exists()


def test_the_demo_learns(demo: Demo) -> None:
    before, after = map(float, re.findall(r"validation loss ([\d.]+) -> ([\d.]+)", demo.screen)[0])
    assert after < 0.95 * before
