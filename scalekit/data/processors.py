"""The processor of a job: a tokenizer, or what prepares images and sounds."""

from __future__ import annotations

from typing import Any

from scalekit.errors import ConfigError
from scalekit.models.tasks import TASKS


def processor_for(task: str, given: Any, model: Any) -> Any:
    """The processor that was given, or the one that stands beside the model; None for images and sounds without one.

    Raises:
        ConfigError: text without a tokenizer.
    """
    if given is not None and not isinstance(given, str):
        return given
    import transformers

    name = given or (model if isinstance(model, str) else getattr(model, "name_or_path", ""))
    kind = TASKS[task].processor
    if kind != "AutoTokenizer" and not name:
        return None
    try:
        return getattr(transformers, kind).from_pretrained(name)
    except Exception as error:
        what = kind.removeprefix("Auto")
        raise ConfigError(f"{task} needs a {what}, and none was found for {name!r}: give `processor=`") from error
