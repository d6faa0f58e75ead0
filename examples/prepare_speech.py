"""Lays out what `speech.py` starts from: ten words, said by eSpeak NG (the package espeakng-loader).

Writes under build/speech/:
    sounds/         a data set of WAV files: 12 voices in 3 accents; 4 other voices, in all accents, are held out
    baseline.json   the share of the commonest word
"""

from collections import Counter
from itertools import product
from pathlib import Path

from espeak import Espeak
from ingredients import write_baseline

FOLDER = Path("build/speech")
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en-us", "en-gb-scotland", "en-gb-x-rp")
VOICES = ("f1", "f2", "f4", "f5", "m1", "m2", "m4", "m5", "m7", "Alicia", "steph", "zac")
OTHERS = ("f3", "m3", "linda", "Andy")
SPEEDS, PITCHES = (130, 190), (30, 70)


def said(espeak: Espeak, voices: tuple[str, ...]) -> list[dict]:
    rows = []
    for word, accent, voice, speed, pitch in product(WORDS, ACCENTS, voices, SPEEDS, PITCHES):
        sound = espeak.say(word, f"{accent}+{voice}", speed, pitch)
        rows.append({"audio": {"bytes": sound, "path": None}, "label": word, "voice": f"{accent}+{voice}"})
    return rows


def write_sounds(folder: Path) -> tuple[list[dict], list[dict]]:
    from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value

    espeak = Espeak()
    parts = {"train": said(espeak, VOICES), "validation": said(espeak, OTHERS)}
    features = Features({"audio": Audio(), "label": ClassLabel(names=sorted(WORDS)), "voice": Value("string")})
    # Cast afterwards: to make rows of the feature itself, `datasets` wants torchcodec, though there is nothing to encode.
    DatasetDict({name: Dataset.from_list(rows).cast(features) for name, rows in parts.items()}).save_to_disk(folder)
    train, validation = parts.values()
    print(f"{len(train)} sounds in {folder}, and {len(validation)} in voices that are held out")
    return train, validation


if __name__ == "__main__":
    train, validation = write_sounds(FOLDER / "sounds")
    commonest = Counter(row["label"] for row in train).most_common(1)[0][0]
    share = sum(row["label"] == commonest for row in validation) / len(validation)
    write_baseline(FOLDER, f"always saying {commonest!r}; all ten words are equally common", accuracy=share)
