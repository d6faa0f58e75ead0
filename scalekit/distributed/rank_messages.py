"""What ranks tell each other without a collective, in which one that is held up would hold up all."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, final

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from scalekit.distributed.world import MESSAGE_STORE, World

_CONNECT_SECONDS = 20


@final
class RankMessages:
    """A line of each rank's, which all can read: in the launcher's store, or in the one by which torchrun's processes met.

    Args:
        world: the job's processes.
        subject: what the lines are about.
    """

    def __init__(self, world: World, subject: str) -> None:
        self._world, self._subject = world, subject
        self._job = ""
        self._own: str | None = None
        self._store: Any = None

    def open(self, job: str) -> None:
        """Comes before all else.

        Args:
            job: a name that these processes have in common, and none before them: the store outlives them.
        """
        self._job = job

    def write(self, line: str) -> None:
        """This rank's line, in place of the one before.

        Raises:
            RuntimeError: the store is gone.
        """
        self._own = line
        store = self._connected()
        if store is not None:
            store.set(str(self._world.rank), line)

    def read(self) -> dict[int, str]:
        """The lines, by rank, of those that have written one.

        Raises:
            RuntimeError: the store is gone.
        """
        store = self._connected()
        if store is None:
            return {self._world.rank: self._own} if self._own is not None else {}
        ranks = (rank for rank in range(self._world.size) if store.check([str(rank)]))
        return {rank: store.get(str(rank)).decode() for rank in ranks}

    def _connected(self) -> Any:
        if self._world.size == 1 or "MASTER_ADDR" not in os.environ:
            return None
        if self._store is None:
            # A connection of its own: the one of the process group may be held by a collective that waits.
            usual = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            host, _, port = os.environ.get(MESSAGE_STORE, usual).rpartition(":")
            store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=_CONNECT_SECONDS))
            self._store = PrefixStore(f"scalekit-{self._subject}-{self._job}", store)
        return self._store
