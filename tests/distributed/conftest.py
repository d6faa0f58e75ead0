"""What several files compare with."""

import sys
from pathlib import Path

import pytest

from tests.support.processes import WORKERS, run


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's job on one process, from its first step to its last."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run([sys.executable, str(WORKERS / "oracle.py"), f"{folder}:single:20"])
    return folder
