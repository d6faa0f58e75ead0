"""Models that PEFT wraps."""

from __future__ import annotations

from typing import Any


def innermost(model: Any) -> Any:
    """The Hugging Face model itself, where PEFT wraps it; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
