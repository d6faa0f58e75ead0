"""How checkpoints come to the disk and back: Lightning's plug point, as folders that a process beside each rank writes."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, final

from lightning.pytorch.plugins.io import CheckpointIO

from scalekit.checkpoint import load
from scalekit.checkpoint.async_saver import Saver
from scalekit.checkpoint.writer_process import WriteResult


@final
class FolderCheckpointIO(CheckpointIO):
    """Checkpoints are folders, as `checkpoint.format` has them.

    Args:
        rank: this one.
        ranks: how many there are; all save the same checkpoints.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Begins a checkpoint; it stands some time later.

        Args:
            checkpoint: ``"tensors"``, this rank's parts by the stem of their files' names; ``"files"``, those of rank 0 count.
            path: where it shall stand.
            storage_options: ``{"unwanted": [...]}``, checkpoints beside it that are deleted once it stands.
        """
        folder = Path(path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unwanted = (storage_options or {}).get("unwanted", ())
        self._saver.save(folder, checkpoint["tensors"], checkpoint["files"], unwanted)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What a checkpoint holds beside tensors, which a strategy fills in parts."""
        return dict(load.state(Path(path)))

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a checkpoint; one that never came, as after a run without an exception, is nothing to delete."""
        with suppress(FileNotFoundError):
            shutil.rmtree(path)

    def outcomes(self, wait: bool = False) -> list[WriteResult]:
        """See `Saver.outcomes`."""
        return self._saver.outcomes(wait)

    def last_outcome(self) -> WriteResult | None:
        """See `Saver.last_outcome`."""
        return self._saver.last_outcome()

    def teardown(self) -> None:
        if "_saver" in self.__dict__:
            self._saver.close()
            del self._saver

    @cached_property
    def _saver(self) -> Saver:
        return Saver(self._rank, self._ranks)
