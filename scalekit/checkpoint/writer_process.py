"""The process that writes a rank's part of each checkpoint beside the training, ``-m scalekit.checkpoint.writer_process``.

It is told what to write where on its standard input, a line of JSON each, and takes the bytes from memory that it shares with
its parent. It knows nothing of tensors, never imports torch, and does not outlive its parent.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from isal import isal_zlib

from scalekit.checkpoint.format import MANIFEST, Listed, contribution, manifest
from scalekit.distributed.process import exit_with_parent
from scalekit.distributed.run_lock import join
from scalekit.utils.files import atomic_write_text

_CHUNK_BYTES = 16 << 20
_LOOK_SECONDS = 0.02
_OTHERS_WAIT_SECONDS = 1800.0


@dataclass(frozen=True)
class WriteRequest:
    """One rank's part of a checkpoint.

    Attributes:
        folder: where the checkpoint shall stand.
        rank, ranks: whose part, of how many. Rank 0 publishes when all have written.
        sizes_bytes: of the files that this rank has a part of.
        pieces: what to write: a file's path in the checkpoint, an offset in the file, one in the shared memory, and how many
            bytes.
        unwanted: checkpoints beside it, by name, that are deleted once it stands.
    """

    folder: str
    rank: int
    ranks: int
    sizes_bytes: Mapping[str, int]
    pieces: Sequence[tuple[str, int, int, int]]
    unwanted: Sequence[str] = field(default_factory=tuple)

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class WriteResult:
    """What came of an order.

    Attributes:
        folder: of the checkpoint.
        done: ``"written"`` when the rank's part is on the disk, ``"published"`` when the whole stands, ``"failed"``.
        why: of what failed.
    """

    folder: str
    done: str
    why: str = ""

    @classmethod
    def of(cls, line: bytes | str) -> WriteResult:
        """The reverse of `line`."""
        return cls(**json.loads(line))

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def main() -> None:
    """Carries orders out until there are no more."""
    memory_descriptor = int(sys.argv[1])
    exit_with_parent()
    os.nice(5)  # the training comes first
    joined: set[Path] = set()
    # An empty line ends it. The end of the input would not come while the parent's other children hold copies of the pipe.
    for line in iter(sys.stdin.readline, "\n"):
        if not line:
            break
        order = WriteRequest(**json.loads(line))
        _join(Path(order.folder).parents[1], joined)
        sys.stdout.write(_carry_out(order, memory_descriptor).line())
        sys.stdout.flush()


def _join(run: Path, joined: set[Path]) -> None:
    """Has the next job in a run's folder wait for this process too, which outlives a rank that was killed for a moment."""
    if run not in joined:
        with contextlib.suppress(OSError):  # a folder that is no run's
            join(run)
            joined.add(run)


def give_up(folder: Path, rank: int) -> None:
    """Tells the others that a rank's part of a checkpoint will not come.

    An empty file does, for which there is mostly room where there is none for contents; without it the others wait in vain for
    a while, and then give up too.
    """
    with contextlib.suppress(OSError):
        (_marks(_partial(folder)) / f"{rank}.failed").touch()


def _partial(folder: Path) -> Path:
    """Where a checkpoint is while it is written."""
    return folder.with_name(f".{folder.name}.partial")


def _marks(partial: Path) -> Path:
    """Where in it the ranks say that they have written; made by the first, but nothing above it."""
    marks = partial / ".written"
    for each in (partial, marks):
        each.mkdir(exist_ok=True)
    return marks


def _carry_out(order: WriteRequest, memory_descriptor: int) -> WriteResult:
    folder = Path(order.folder)
    partial = _partial(folder)
    if order.rank == 0:
        _sweep_earlier(folder)
    try:
        marks = _marks(partial)
        written = json.dumps(_write(order, partial, memory_descriptor))
        atomic_write_text(marks / f"{order.rank}.json", written, on_disk=True)
    except OSError as error:
        give_up(folder, order.rank)
        if order.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        return WriteResult(order.folder, "failed", _told(error))
    if order.rank:
        return WriteResult(order.folder, "written")
    try:
        parts = _await(marks, order.ranks)
        shutil.rmtree(marks)
        _publish(partial, folder, parts)
    except (OSError, _FailedError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        return WriteResult(order.folder, "failed", _told(error))
    for name in order.unwanted:
        _delete(folder.with_name(name))
    return WriteResult(order.folder, "published")


def _sweep_earlier(folder: Path) -> None:
    """Removes what is left of checkpoints before a folder's that could not be written, as by ranks that were late."""
    for left in folder.parent.glob(".step-*.partial"):
        if left.name < _partial(folder).name:
            shutil.rmtree(left, ignore_errors=True)


def _write(order: WriteRequest, partial: Path, memory_descriptor: int) -> dict[str, tuple[int, int]]:
    """Writes a rank's pieces, and gives of each file how many bytes they are and what they contribute to its CRC-32."""
    end = max((at + count for _, _, at, count in order.pieces), default=0)
    if not end:
        return {}
    found: dict[str, tuple[int, int]] = {}
    descriptors: dict[str, int] = {}
    with mmap.mmap(memory_descriptor, end, prot=mmap.PROT_READ) as memory, memoryview(memory) as view:
        try:
            for name, offset, at, count in order.pieces:
                size = order.sizes_bytes[name]
                if name not in descriptors:
                    _make_folders(partial, name)
                    descriptors[name] = os.open(partial / name, os.O_WRONLY | os.O_CREAT, 0o644)
                    os.ftruncate(descriptors[name], size)
                with view[at : at + count] as piece:
                    crc = _write_piece(descriptors[name], offset, piece)
                done, known = found.get(name, (0, 0))
                found[name] = (done + count, known ^ contribution(crc, size - offset - count))
            for descriptor in descriptors.values():
                os.fsync(descriptor)
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)
    return found


def _make_folders(partial: Path, name: str) -> None:
    """Those above a file, but not the checkpoint's own: where that is gone, another rank has given up."""
    for parent in [*Path(name).parents][-2::-1]:
        (partial / parent).mkdir(exist_ok=True)


def _write_piece(descriptor: int, offset: int, piece: memoryview) -> int:
    crc, done = 0, 0
    while done < len(piece):
        with piece[done : done + _CHUNK_BYTES] as chunk:
            crc = isal_zlib.crc32(chunk, crc)
            written = 0
            while written < len(chunk):
                with chunk[written:] as rest:
                    written += os.pwrite(descriptor, rest, offset + done + written)
        done += written
    return crc


def _await(marks: Path, ranks: int) -> list[dict[str, tuple[int, int]]]:
    """What every rank has written, as soon as all have."""
    started = time.monotonic()
    missing = set(range(ranks))
    while missing:
        names = {path.name for path in marks.iterdir()}
        failed = sorted(name for name in names if name.endswith(".failed"))
        if failed:
            raise _FailedError(f"rank {failed[0].removesuffix('.failed')} could not write its part")
        missing = {rank for rank in missing if f"{rank}.json" not in names}
        if missing and time.monotonic() - started > _OTHERS_WAIT_SECONDS:
            raise _FailedError(f"rank {min(missing)} has not written its part for {_OTHERS_WAIT_SECONDS:.0f} s")
        if missing:
            time.sleep(_LOOK_SECONDS)
    return [json.loads((marks / f"{rank}.json").read_text()) for rank in range(ranks)]


def _publish(partial: Path, folder: Path, parts: list[dict[str, tuple[int, int]]]) -> None:
    """Lists what was written, and gives the whole its name; what had that name goes."""
    files: dict[str, Listed] = {}
    for part in parts:
        for name, (count, crc) in part.items():
            known = files.get(name, Listed(0, 0))
            files[name] = Listed(known.size_bytes + count, known.crc32 ^ crc)
    for name, listed in files.items():
        if (partial / name).stat().st_size != listed.size_bytes:
            raise _FailedError(f"the ranks wrote {listed.size_bytes} bytes of {name}, which is of another size")
    atomic_write_text(partial / MANIFEST, manifest(files), on_disk=True)
    for path in (*(path for path in partial.rglob("*") if path.is_dir()), partial):
        _sync(path)
    replaced = folder.with_name(f".{folder.name}.replaced")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    partial.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _delete(folder: Path) -> None:
    """Takes a checkpoint's name away first, so that what is half deleted is none."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    try:
        folder.rename(doomed)
    except OSError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _FailedError(Exception):
    """A checkpoint that another rank could not write."""


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}" + (f": {error.filename}" if error.filename else "")
    return str(error)


if __name__ == "__main__":
    main()
