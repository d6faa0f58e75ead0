"""Lightning's answer to signals, without what ScaleKit's ranks tell each other in another way: see `preemption`."""

from __future__ import annotations

from typing import final

from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


@final
class SignalConnector(_SignalConnector):
    """Lightning's own, whose answer to SIGTERM is a collective, which each rank would begin somewhere else."""

    def register_signal_handlers(self) -> None:
        """Nothing."""
