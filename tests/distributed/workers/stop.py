"""Stops jobs in the middle of steps, resumes them, and runs the same without a stop: stop.py FOLDER STRATEGY ..."""

import json
import os
import sys
from pathlib import Path

import torch

from tests.support.slow_case import AsksToStop, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, strategies = Path(sys.argv[1]), sys.argv[2:]
    found = {}
    for strategy in strategies:
        whole = train(folder / f"{strategy}-whole", strategy)
        stopped = folder / strategy
        legs = [
            train(stopped, strategy, AsksToStop(5, rank=1)),
            train(stopped, strategy, AsksToStop(6, rank=0)),
            train(stopped, strategy),
        ]
        found[strategy] = {"whole": whole, "legs": legs}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
