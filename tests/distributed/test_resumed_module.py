"""A LightningModule's job that was ended goes on as if it had not been: schedules, thawed parameters, what was logged."""

from pathlib import Path

import pytest

from tests.distributed.workers import resumed_module
from tests.support import processes


@pytest.mark.parametrize("strategy", ["single", pytest.param("ddp", marks=pytest.mark.long), "fsdp2"])
def test_it_goes_on_as_if_it_had_not_ended(strategy: str, tmp_path: Path) -> None:
    if strategy == "single":
        found = resumed_module.run(tmp_path, strategy)
    else:
        found = processes.found("resumed_module", tmp_path, strategy)
    for name in resumed_module.JOBS:
        whole, *resumed = found[name]
        epochs = whole.pop("epochs")
        for part in resumed:
            own = part.pop("epochs")  # that ended after it was resumed
            assert own == epochs[-len(own) :], name
            assert part == whole, name
