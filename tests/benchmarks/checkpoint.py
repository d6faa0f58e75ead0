"""What checkpoints cost, beside `torch.save` and Lightning's own, side by side in one run.

How long they hold the training up: asynchronous against blocking. What they write: against the size of the state. What memory
they take: against this rank's share of it. How long a resume takes: from positions 10 and 10,000,000, against a fresh start.

Run it on an idle machine: python tests/benchmarks/checkpoint.py [--strategy single] [--rounds 7] [--width 1024]
or on several processes:   scalekit launch --nproc 2 -- tests/benchmarks/checkpoint.py --strategy zero3
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

import scalekit

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
STEPS = 10**6
POSITIONS = (10, 10_000_000)


class Layers(nn.Module):
    """Linear layers in a row: a state of three numbers a weight, and steps that cost little beside it."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Twenty million rows, made when they are asked for."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __len__(self) -> int:
        return 20_000_000

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        x = torch.full((self.width,), row % 97 / 97)
        return {"x": x, "y": -x}


class EndedError(Exception):
    pass


class Ends(Callback):
    """Ends a job after its first step, and says when that was."""

    seconds = 0.0

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        self.seconds = time.perf_counter() - self.began
        raise EndedError


class Saves(Callback):
    """Saves in several ways after each step, and measures."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds, self.found = folder, rounds, []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        number = len(self.found)
        began = time.perf_counter()
        trainer.save_checkpoint(self.folder / f"step-{number:08d}", storage_options={})  # as ScaleKit does
        held = time.perf_counter() - began
        trainer.strategy.finish_saving()
        whole = time.perf_counter() - began
        self.found.append({"held": held, "whole": whole})
        if number == self.rounds:  # the first one only warms up
            raise EndedError


def fit(args: argparse.Namespace, callback: Callback, **settings: Any) -> None:
    usual = {
        "loss": nn.MSELoss(),
        "strategy": args.strategy,
        "precision": "32-true",
        "global_batch_size": WORLD_SIZE,
        "max_steps": STEPS,
        "lr_schedule": "constant",
        "num_workers": 0,
        "callbacks": [callback],
    }
    with suppress(EndedError):
        scalekit.fit(lambda: Layers(args.width, args.layers), Rows(args.width), **{**usual, **settings})


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """The most memory that this process and its writer have had over what they had before, each page counted once."""
    before, most, done = _pss(), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], _pss() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def let_go() -> None:
    """Gives the system back what earlier jobs have left: what is taken from that would not be seen."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _pss() -> int:
    total = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in (os.getpid(), *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


class Peak(Callback):
    """The most memory that a save takes, from its beginning until it stands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bytes = folder, 0

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        with peak_bytes() as most:
            trainer.save_checkpoint(self.folder)
            trainer.strategy.finish_saving()
        self.bytes = most[0]
        raise EndedError


class Loaded(Callback):
    """Ends a job as soon as it is what its checkpoint was, and says what memory is in use then."""

    bytes = 0

    def on_train_start(self, *rest: Any) -> None:
        self.bytes = _pss()
        raise EndedError


def move(checkpoint: Path, position: int) -> None:
    """Makes a checkpoint one of another position."""
    path = checkpoint / "state.json"
    document = json.loads(path.read_text())
    _entry(document, "scalekit")["dict"][:] = [
        [key, position if key == "position" else value] for key, value in _entry(document, "scalekit")["dict"]
    ]
    content = json.dumps(document).encode()
    path.write_bytes(content)
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))


def _entry(document: Any, name: str) -> Any:
    return next(value for key, value in document["dict"] if key == name)


def timed(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def others(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """`torch.save` and Lightning's own checkpoint of the same state, to the same disk, on it when they are done."""
    if WORLD_SIZE > 1:
        return {}
    model = Layers(args.width, args.layers)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, args.width)).sum().backward()
    optimizer.step()

    class Own(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.mse_loss(self.model(batch["x"]), batch["y"])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Own(), torch.utils.data.DataLoader(Rows(args.width), batch_size=1))

    def saved(write: Callable[[Path], None]) -> None:
        path = folder / "other.ckpt"
        write(path)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        path.unlink()

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    ways = {"torch.save": lambda path: torch.save(state, path), "Lightning": trainer.save_checkpoint}
    return {name: [timed(lambda way=way: saved(way)) for _ in range(args.rounds)] for name, way in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy", default="single")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=100)
    args = parser.parse_args()
    place = tempfile.TemporaryDirectory()
    box = [place.name]
    if WORLD_SIZE > 1:
        torch.distributed.init_process_group("gloo")
        torch.distributed.broadcast_object_list(box, src=0)
    folder = Path(box[0])
    state_bytes = 3 * 4 * sum(parameter.numel() for parameter in Layers(args.width, args.layers).parameters())
    say = print if RANK == 0 else lambda *_: None
    say(f"state {state_bytes / 1e6:.0f} MB, {args.strategy} on {WORLD_SIZE}")

    saves = Saves(folder / "saves", args.rounds)
    saves.folder.mkdir(exist_ok=True)
    fit(args, saves, output_dir=str(folder / "a"))
    ratios = [each["held"] / each["whole"] for each in saves.found[1:]]
    shown("held by a save, of a blocking one", ratios, say)
    shown("held, seconds", [each["held"] for each in saves.found[1:]], say)
    shown("blocking, seconds", [each["whole"] for each in saves.found[1:]], say)
    for name, seconds in others(args, folder).items():
        shown(
            f"{name}, of a blocking one", [s / w["whole"] for s, w in zip(seconds, saves.found[1:], strict=True)], say
        )
    newest = saves.folder / f"step-{args.rounds:08d}"
    written = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    say(f"{'bytes written, of the state':40} {written / state_bytes:.4f}")

    peak = Peak(folder / "peak" / "step-00000001")
    peak.folder.parent.mkdir(exist_ok=True)
    let_go()
    fit(args, peak, output_dir=str(folder / "b"))
    say(f"{'memory of a save, of the share':40} {peak.bytes / (state_bytes / WORLD_SIZE):.3f}")

    let_go()
    loaded, before = Loaded(), _pss()
    with peak_bytes() as most:
        fit(args, loaded, output_dir=str(folder / "c"), resume=str(peak.folder))
    # What engines hold beside the state, such as gradients and buckets, they hold after a fresh start too.
    held = loaded.bytes - before
    share = state_bytes / WORLD_SIZE
    say(f"{'memory of a load, of the share':40} {1 + (most[0] - held) / share:.3f}")
    say(f"{'in use when it is done, of the share':40} {held / share:.3f}")

    starts: dict[str, list[float]] = {}
    for number in range(args.rounds):
        for name in ("fresh", *POSITIONS):
            ends, settings = Ends(), {}
            if name != "fresh":
                if RANK == 0:
                    move(peak.folder, int(name))
                settings["resume"] = str(peak.folder)
            if WORLD_SIZE > 1:
                torch.distributed.barrier()
            fit(args, ends, output_dir=str(folder / f"d-{number}-{name}"), **settings)
            starts.setdefault(str(name), []).append(ends.seconds)
    shown("first step of a fresh start, seconds", starts["fresh"], say)
    for position in POSITIONS:
        shown(f"first step from position {position:,}", starts[str(position)], say)
    place.cleanup()


def shown(what: str, values: list[float], say: Callable[[str], None]) -> None:
    say(f"{what:40} {statistics.median(values):.3f}  ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
