"""Trains the cases of the corpus for a step on the processes that there are: corpus.py FOLDER STRATEGY MICRO_BATCH NAME ..."""

import json
import os
import sys
from pathlib import Path

from scalekit.errors import ScaleKitError
from tests.corpus.test_corpus import CASES, USABLE, first_loss

if __name__ == "__main__":
    folder, strategy, micro, names = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    found = {}
    for name in names:
        try:
            found[name] = first_loss(CASES[name], folder / str(USABLE.index(name)), strategy, micro)
        except ScaleKitError as error:
            found[name] = str(error)
    if os.environ["RANK"] == "0":
        (folder / "found.json").write_text(json.dumps(found))
