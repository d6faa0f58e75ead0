"""The field's own words: idioms that readers had to read twice do not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = [
    *(ROOT / "scalekit").rglob("*.py"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "strategies").iterdir(),
    *(ROOT / "launch").iterdir(),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
IDIOMS = {
    r"said aloud": "logged",
    r"gone on (with|from)": "resumed",
    r"(job|run|it) goes on from": "resumes from",
    r"rows held out": "the validation set",
    r"shared out": "sharded, split",
    r"carr(y|ied|ies) out": "run, used",
    r"\b[Mm]end(s|ed)?\b": "fix",
    r"\banew\b": "again",
    r"\b(spoilt|broken) rows\b": "malformed rows",
    r"\bin your hands\b": "",
}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_no_idiom_of_our_own(idiom: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}, line {number}: {line.strip()}"
        for path in OURS
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(idiom, line)
    ]
    assert not found, f"say {IDIOMS[idiom]!r}: {found}"


def test_a_docstring_begins_with_a_sentence() -> None:
    begun = re.compile(r'"""(of|for|its|their|in|by) ')
    found = [str(path) for path in OURS if path.suffix == ".py" and begun.search(path.read_text())]
    assert not found
