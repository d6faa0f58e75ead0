"""Trains the cases of the corpus for a step on the processes that there are: corpus.py FOLDER STRATEGY MICRO_BATCH"""

import json
import os
import sys
from pathlib import Path

from scalekit.errors import ScaleKitError
from tests.corpus.test_corpus import CASES, first_loss

if __name__ == "__main__":
    folder, strategy, micro = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    found = {}
    for number, (name, case) in enumerate(CASES.items()):
        if not case.refused:
            try:
                found[name] = first_loss(case, folder / str(number), strategy, micro)
            except ScaleKitError as error:
                found[name] = str(error)
    if os.environ["RANK"] == "0":
        (folder / "found.json").write_text(json.dumps(found))
