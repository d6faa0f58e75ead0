"""From rows to what a model takes: a task's encoder a file, which `models.tasks.TASKS` names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from scalekit.data.encoders.base import Encoder
from scalekit.data.encoders.encoder_settings import EncoderSettings as EncoderSettings
from scalekit.models.tasks import TASKS


def encoder(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job.

    Args:
        wanted: what the job says.
        parts: its data sets, of which classes are found.

    Raises:
        ScaleKitError: no tokenizer, or columns without classes.
    """
    made: Encoder = importlib.import_module(f"{__name__}.{TASKS[wanted.task].encoder}").make(wanted, parts)
    return made
