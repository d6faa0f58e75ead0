"""Saving: a rank copies what it owns to memory that it shares with its writer, and continues training."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from scalekit.checkpoint.safetensors_io import TensorFiles
from scalekit.checkpoint.writer_process import WriteRequest, WriteResult, give_up
from scalekit.distributed.process import block_stop_signals
from scalekit.distributed.shards import TensorShard, owned
from scalekit.errors import CheckpointError

_ALIGNMENT = 64


class Saver:
    """A rank's side of saving; every rank has one, and all save the same checkpoints.

    Args:
        rank: this rank.
        ranks: all of them. Rank 0 publishes.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._memory = _SharedMemory()
        self._writer: subprocess.Popen[bytes] | None = None
        self._outcomes: list[WriteResult] = []
        self._pending: str | None = None

    def save(
        self,
        folder: Path,
        tensors_by_file: Mapping[str, Sequence[TensorShard]],
        files: Mapping[str, bytes],
        unwanted: Sequence[str] = (),
    ) -> None:
        """Begins a checkpoint, as soon as the one before is done; it stands some time later.

        Args:
            folder: where it shall stand; what stands there is replaced.
            families: of tensors, by the stem of their files' names: this rank's parts of all of them.
            files: further ones, by their paths in the checkpoint; those of rank 0 count.
            unwanted: checkpoints beside it, by name, that are deleted once it stands.
        """
        self._wait_for_outcome()
        self._tell(self._stage(folder.absolute(), tensors_by_file, files if self._rank == 0 else {}, unwanted))

    def outcomes(self, wait: bool = False) -> list[WriteResult]:
        """What has become of checkpoints since the last call.

        Args:
            wait: whether to wait for the one under way.
        """
        if wait:
            self._wait_for_outcome()
        elif self._pending is not None and self._has_spoken():
            self._hear()
        found, self._outcomes = self._outcomes, []
        return found

    def last_outcome(self) -> WriteResult | None:
        """What has become of the checkpoint that was begun last, waited for; those before it are left to `outcomes`."""
        self._wait_for_outcome()
        return self._outcomes.pop() if self._outcomes else None

    def close(self) -> None:
        """Lets the writer end what it is doing, and go."""
        if self._writer is not None:
            with contextlib.suppress(BrokenPipeError):
                self._writer.communicate(b"\n")
            self._writer = None
        self._memory.close()

    def _stage(
        self,
        folder: Path,
        tensors_by_file: Mapping[str, Sequence[TensorShard]],
        files: Mapping[str, bytes],
        unwanted: Sequence[str],
    ) -> WriteRequest:
        ready: list[tuple[str, int, Tensor]] = []
        sizes: dict[str, int] = {}
        for stem, parts in tensors_by_file.items():
            if not parts:
                continue
            planned = TensorFiles.planned(stem, parts)
            sizes |= planned.sizes_bytes
            ready += [(*planned.range(part), part.data.reshape(-1)) for part in owned(parts, self._rank, self._ranks)]
            if self._rank == 0:
                ready += [(file, 0, _tensor(header)) for file, header in planned.headers.items()]
                if planned.index is not None:
                    files = {**files, f"{stem}.safetensors.index.json": planned.index}
        sizes |= {name: len(content) for name, content in files.items()}
        ready += [(name, 0, _tensor(content)) for name, content in files.items()]
        at = self._memory.take([tensor for _, _, tensor in ready])
        pieces = [(file, offset, begin, t.nbytes) for (file, offset, t), begin in zip(ready, at, strict=True)]
        return WriteRequest(str(folder), self._rank, self._ranks, sizes, pieces, unwanted)

    def _tell(self, order: WriteRequest) -> None:
        if self._writer is None or self._writer.poll() is not None:
            with block_stop_signals():
                self._writer = subprocess.Popen(
                    [sys.executable, "-m", "scalekit.checkpoint.writer_process", str(self._memory.descriptor)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[self._memory.descriptor],
                    start_new_session=True,  # an interrupt from the keyboard is for the training to answer
                )
        self._pending = order.folder
        with contextlib.suppress(BrokenPipeError):  # a writer that has died is heard of as one that says no more
            _stream(self._writer.stdin).write(order.line().encode())
            _stream(self._writer.stdin).flush()

    def _wait_for_outcome(self) -> None:
        if self._pending is not None:
            self._hear()

    def _has_spoken(self) -> bool:
        if self._writer is None:
            return False
        poll = select.poll()  # `select.select` knows no descriptors above 1023
        poll.register(_stream(self._writer.stdout), select.POLLIN)
        return bool(poll.poll(0))

    def _hear(self) -> None:
        """One line of the writer's, waited for; a writer that has died has failed."""
        writer, self._writer = self._writer, None
        if writer is None or self._pending is None:
            raise CheckpointError("no checkpoint is being written")
        line = _stream(writer.stdout).readline()
        if line:
            self._writer = writer
            outcome = WriteResult.of(line)
        else:
            writer.communicate()
            give_up(Path(self._pending), self._rank)
            outcome = WriteResult(self._pending, "failed", f"the process that writes it ended with {writer.returncode}")
        self._pending = None
        self._outcomes.append(outcome)


class _SharedMemory:
    """Memory without a name, shared with whoever gets its descriptor. It is kept from one checkpoint to the next."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("scalekit-checkpoint")
        self._size = 0
        self._map: mmap.mmap | None = None

    def take(self, tensors: Iterable[Tensor]) -> list[int]:
        """Copies tensors in, and gives where each begins."""
        tensors = list(tensors)
        begins, end = [], 0
        for tensor in tensors:
            begins.append(end)
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._grow(end)
        if self._map is None:
            return begins
        memory = torch.frombuffer(self._map, dtype=torch.uint8)
        for tensor, begin in zip(tensors, begins, strict=True):
            if tensor.nbytes:
                memory[begin : begin + tensor.nbytes].view(tensor.dtype).copy_(tensor.detach())
        return begins

    def close(self) -> None:
        self._map = None
        os.close(self.descriptor)

    def _grow(self, size: int) -> None:
        if size <= self._size:
            return
        self._map = None
        os.ftruncate(self.descriptor, size)
        self._map, self._size = mmap.mmap(self.descriptor, size), size


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise CheckpointError("the writer has no pipe")
    return stream
