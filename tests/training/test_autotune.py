"""Reasons name what somebody would take instead, and nothing else."""

from dataclasses import replace

from scalekit.config.settings import Job
from scalekit.hardware import Hardware
from scalekit.planning.search import Forecast, choose
from scalekit.training.decision_reasons import reasons
from tests.planning.test_search import asked

JOB = Job("model", "data", max_steps=1)


def reason(forecast: Forecast, **settings: object) -> str:
    assert forecast.chosen is not None
    (text,) = reasons(replace(JOB, **settings), forecast, forecast.chosen)
    return text


def test_where_everything_fits_nothing_that_shards_or_offloads_more_is_named() -> None:
    forecast = choose(asked("0.1B", 80, 8))
    assert forecast.chosen is not None
    taken = {*forecast.chosen.setting.strategy.shards}
    text = reason(forecast)
    assert text.startswith(forecast.chosen.name)
    for other in forecast.candidates:
        if (
            set(other.setting.strategy.shards) > taken
            or other.setting.strategy.offload
            or other.setting.recompute != "none"
        ):
            assert f" {other.name} " not in f"{text.partition(';')[2]} "


def test_what_is_simpler_and_too_large_is_named() -> None:
    text = reason(choose(asked("8B", 80, 8)))
    assert "too large: zero2, zero1, ddp" in text
    assert "zero3" not in text  # it fits, but takes far longer
    assert "offload" not in text
    assert "nvme" not in text


def test_one_process_shards_nothing() -> None:
    one = replace(asked("0.1B", 80, 1), hardware=Hardware.parse("1xH100-80GB"))
    text = reason(choose(one))
    assert text.startswith("single with micro-batches of ")
    assert text.endswith(" is the fastest that fits")


def test_what_the_job_has_named_needs_no_reason() -> None:
    forecast = choose(asked("0.1B", 80, 8))
    assert reason(forecast, strategy="ddp", micro_batch_size=4) == "all activations fit"
    assert reason(forecast, strategy="ddp").startswith("micro-batches of ")
    assert (
        reasons(
            replace(JOB, strategy="ddp", micro_batch_size=4, activation_checkpointing="none"),
            forecast,
            forecast.candidates[0],
        )
        == []
    )
