"""What the documentation shows is run: its Python, its job files, and its commands, on a tiny model under the same names."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import scalekit
from scalekit.cli.flags import own_words, settings_of
from scalekit.cli.parser import build_parser
from scalekit.config.settings import Job
from tests.support import language_model
from tests.support.processes import ROOT, run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MOST_LINES = 150


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for line in re.findall(r"^(?:    )?((?:scalekit|torchrun) .*)", page.read_text(), flags=re.MULTILINE):
            yield page.name, shlex.split(line.partition(" #")[0].partition(" > ")[0])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the names that the documentation uses exist."""
    monkeypatch.chdir(tmp_path)
    language_model.save_model(tmp_path / MODEL)
    rows = "".join(json.dumps(row) + "\n" for row in language_model.conversations(80))
    (tmp_path / "conversations.jsonl").write_text(rows)
    (job,) = (text for text in blocks(PAGES[0], "yaml") if text.startswith("# job.yaml"))
    (tmp_path / "job.yaml").write_text(job.replace("max_steps: 1000", "max_steps: 2"))
    return tmp_path


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text()):
            assert not link or link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readmes_python_runs(place: Path) -> None:
    (code,) = blocks(PAGES[0], "python")
    found: dict[str, scalekit.Run] = {}
    exec(code.replace("max_steps=1000", "max_steps=1"), found)
    assert len(found["run"].history) == 1


def test_the_readmes_job_runs_by_its_first_command(place: Path) -> None:
    words = next(words for _, words in commands() if words[:2] == ["scalekit", "launch"])
    run([sys.executable, "-m", *["2" if word == "8" else word for word in words]])
    assert list((place / "runs").rglob("step-00000002"))


def test_the_readmes_plan_runs(place: Path) -> None:
    words = next(words for _, words in commands() if words[:2] == ["scalekit", "plan"])
    assert "zero3" in run([sys.executable, "-m", *words])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_settings_of_a_job(page: Path) -> None:
    for text in blocks(page, "yaml"):
        Job.from_mapping({"model": "m", "data": "d", "validation": "v", "max_steps": 1} | yaml.safe_load(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.parametrize(("page", "words"), [*commands()], ids=lambda value: "-".join(value)[:60].replace("/", "_"))
def test_commands_have_their_options(page: str, words: list[str]) -> None:
    if words[0] == "torchrun":
        words = words[words.index("scalekit") :]
    own, rest = own_words(words[1:])
    if "--help" in own:
        with pytest.raises(SystemExit):
            build_parser(own).parse_args(own)
        return
    parsed, unknown = build_parser().parse_known_args(own)
    if parsed.command == "launch":
        assert rest
    else:
        assert set(settings_of([*rest, *unknown])) <= {*Job.__dataclass_fields__}
