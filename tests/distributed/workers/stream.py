"""A rank reads a stream with the loader, and saves its state after every step.

stream.py FOLDER ROWS SHARDS BATCH [STOP]

It goes on from the newest state that all ranks of the job before have saved. At step STOP the last rank kills itself, after
it has taken the step and before it saves its state.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scalekit.data.loading.stream_loader import StreamLoader
from scalekit.data.loading.stream_states import merge
from scalekit.data.sampling.stream_order import StreamOrder
from tests.support.streams import as_it_is, count_rows, stream

PASSES = 2


def total(tensor: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(tensor)
    return tensor


def newest(folder: Path) -> dict[str, Any] | None:
    """The merged state of the last step that all ranks have saved."""
    for step in sorted((int(each.name) for each in folder.glob("states/*")), reverse=True):
        states = [json.loads(each.read_text()) for each in (folder / "states" / str(step)).glob("*.json")]
        if states and len(states) == states[0]["world_size"]:
            return merge([each["state"] for each in states])
    return None


def main(folder: Path, length: int, shards: int, batch: int, stop: int = 0) -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    rows = stream(length, shards)
    order = StreamOrder(shards, batch, 1, world_size, seed=5, shuffle_rows=20)
    state = newest(folder)
    dist.barrier()
    loader = StreamLoader(
        rows, as_it_is, as_it_is, order, rank, count_rows, workers=rank % 2, state=state, sum_over_ranks=total
    )
    seen = (folder / f"seen-{world_size}-{0 if state is None else state['step']}-{rank}.jsonl").open("w")
    for _ in range(loader.state()["epoch"], PASSES):
        for own in loader:
            micro = loader.consume()
            line = [micro.step, micro.index, micro.samples, micro.rows, [row["id"] for row in own]]
            if micro.items:
                print(json.dumps(line), file=seen, flush=True)
            if micro.step == stop and micro.last and rank == world_size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if micro.last:
                path = folder / "states" / str(micro.step) / f"{rank}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")
                part.write_text(json.dumps({"world_size": world_size, "state": loader.state()}))
                part.replace(path)
    (folder / f"done-{rank}").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
