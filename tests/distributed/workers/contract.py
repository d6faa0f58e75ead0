"""Runs cases of the contract with Lightning on these processes: contract.py FOLDER STRATEGY [NAME ...]."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.contract.case import by_scalekit
from tests.contract.cases import CASES

if __name__ == "__main__":
    folder, strategy, *names = sys.argv[1:]
    found: dict[str, Any] = {}
    for name in names or CASES:
        try:
            found[name] = by_scalekit(CASES[name], Path(folder) / strategy / name.replace(" ", "-"), strategy)
        except Exception as error:
            found[name] = {"broken": traceback.format_exc(), "why": f"{type(error).__name__}: {error}"}
    (Path(folder) / f"found-{strategy}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
