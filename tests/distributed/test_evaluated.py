"""`run.validate`, `run.test` and `run.predict`: each row once and in order, on any ranks, with the weights that are saved."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from safetensors.torch import load_file

from tests.distributed.workers import evaluated
from tests.support import processes

STRATEGIES = ["single", "ddp", "fsdp2", pytest.param("zero2", marks=pytest.mark.long), "zero3"]


@pytest.fixture(scope="module", params=STRATEGIES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "single":
        return evaluated.run(folder, "single")
    return processes.found("evaluated", folder, request.param)


@pytest.fixture(scope="module")
def expected(found: dict[str, Any]) -> dict[str, Any]:
    """What Lightning's own Trainer makes of the model that was saved, on one process."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, data = evaluated.Regression(), evaluated.Data()
    module.load_state_dict(load_file(Path(found["own"]["checkpoint"]) / "model" / "model.safetensors"), strict=False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    (validated,) = trainer.validate(module, datamodule=data, verbose=False)
    predicted = trainer.predict(module, datamodule=data)
    return {"test": tested, "validate": validated["val_loss"], "predict": predicted}


@pytest.mark.filterwarnings("ignore")
def test_a_module_is_tested_and_validated_as_by_lightning(found: dict[str, Any], expected: dict[str, Any]) -> None:
    own = found["own"]
    assert own["test"] == pytest.approx(expected["test"], rel=1e-5)
    assert own["again"]["test_loss"] == pytest.approx(own["test"]["test_loss"], rel=1e-6)
    assert own["validate"] == pytest.approx(expected["validate"], rel=1e-5)
    assert own["validate"] == own["validate_data"] == pytest.approx(own["evaluated"], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_prediction_for_each_row_in_order(found: dict[str, Any], expected: dict[str, Any]) -> None:
    predicted = found["own"]["predict"]
    wanted = [float(each) for batch in expected["predict"] for each in batch["prediction"]]
    assert [each["prediction"] for each in predicted] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert [each["is_large"] for each in predicted] == [each > 0 for each in wanted]
    assert found["own"]["places"][:2] == [0, 1]
    assert set(found["own"]["places"]) <= set(range(evaluated.ROWS))
    assert len(set(found["own"]["places"])) == len(found["own"]["places"])


def test_a_plain_model_is_scored_as_in_its_job(found: dict[str, Any]) -> None:
    plain = found["plain"]
    scores = {name: value for name, value in plain["evaluated"].items() if name != "step"}
    assert plain["validate"] == pytest.approx(scores, rel=1e-6)
    assert plain["test"] == pytest.approx(scores, rel=1e-6)
    assert plain["accuracy"] == pytest.approx(scores["accuracy"])
    assert plain["rows"] == evaluated.ROWS


def test_a_language_model_too(found: dict[str, Any]) -> None:
    language = found["language"]
    assert language["validate"]["loss"] == pytest.approx(language["evaluated"]["loss"], rel=1e-6)
    assert len(language["shapes"]) == 5


@pytest.mark.parametrize("found", ["single"], indirect=True)
def test_what_cannot_be_is_refused(found: dict[str, Any]) -> None:
    said = found["refused"]
    assert said["nothing held out"] == "run.validate: the job has no validation set, so give rows: run.validate(data)"
    assert said["no step"].startswith("Untested has no test_step")
    assert said["no rows"].startswith("predict_step gave")
    assert said["no loader"].startswith("_OnlyTrains has no test_dataloader")
