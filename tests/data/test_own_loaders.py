"""Loaders and data sets as people have them: what they draw depends on seed, epoch and row alone, on any ranks and workers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

import scalekit
from scalekit.config.settings import Job
from scalekit.data.loading.map_loader import Loader
from scalekit.data.prepared import Rows
from scalekit.data.sampling.batch_order import BatchOrder
from scalekit.data.sources.read import read_data
from scalekit.errors import DataError

ROWS = 12


class Noisy(Dataset[Any]):
    """Adds to each row's number what three generators draw, as augmentation does."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        import random

        return torch.tensor([index, torch.rand(()).item(), np.random.rand(), random.random()])


def mixed_up(rows: list[Any]) -> Any:
    """A collator that draws, as mixup does."""
    batch = torch.stack(rows)
    return torch.cat([batch, torch.rand(len(rows), 1)], dim=1)


def prepared(data: Any) -> Rows:
    job = Job(nn.Linear(1, 1), data, max_steps=1, global_batch_size=4)
    return Rows.prepare(job, read_data(data), job.model)


def epochs(data: Any, micro_batch_size: int, ranks: int, workers: int = 0, number: int = 2) -> list[dict[int, Any]]:
    """What each row looks like in each epoch, by the row's number."""
    rows = prepared(data)
    order = BatchOrder(
        len(rows.train), global_batch_size=4, micro_batch_size=micro_batch_size, world_size=ranks, seed=0
    )
    found = []
    for epoch in range(number):
        seen = {}
        for rank in range(ranks):
            place = epoch * len(rows.train)
            loader = Loader(rows.train, rows.collate, order, rank, lambda batch, rows: rows, workers, position=place)
            for batch in loader:
                if loader.consume().items:
                    seen |= {int(row[0]): row[1:4].tolist() for row in batch}
        found.append(seen)
    return found


@pytest.mark.parametrize(("micro", "ranks", "workers"), [(1, 1, 0), (2, 2, 0), (4, 1, 2)])
def test_what_a_data_set_draws_is_the_rows(micro: int, ranks: int, workers: int) -> None:
    whole = epochs(DataLoader(Noisy(), shuffle=True, collate_fn=mixed_up), 4, 1)
    torch.manual_seed(micro)
    assert epochs(DataLoader(Noisy(), shuffle=True, collate_fn=mixed_up), micro, ranks, workers) == whole
    first, second = whole
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert all(first[row] != second[row] for row in first)


def test_what_a_collator_draws_is_the_micro_batchs() -> None:
    rows = prepared(DataLoader(Noisy(), collate_fn=mixed_up))
    order = BatchOrder(ROWS, global_batch_size=4, micro_batch_size=2, world_size=1, seed=0, shuffle=False)
    once, again = (list(Loader(rows.train, rows.collate, order, 0, lambda batch, n: n, workers)) for workers in (0, 2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    assert len({float(value) for batch in once for value in batch[:, -1]}) == ROWS


def weighted(replacement: bool = True, number: int = 400) -> DataLoader[Any]:
    rows = torch.utils.data.TensorDataset(torch.arange(4.0).reshape(4, 1), torch.arange(4.0))
    return DataLoader(rows, sampler=WeightedRandomSampler([1.0, 0.0, 3.0, 4.0], number, replacement))


def test_rows_are_drawn_by_their_weights() -> None:
    rows = prepared(weighted()).train
    assert len(rows) == 400
    drawn = [[int(rows.at_epoch(epoch)[place][1]) for place in range(400)] for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    counts = np.bincount(drawn[0] + drawn[2], minlength=4) / 800
    assert counts == pytest.approx([1 / 8, 0, 3 / 8, 4 / 8], abs=0.06)
    alone = prepared(weighted(replacement=False, number=3)).train
    assert sorted(int(alone[place][1]) for place in range(3)) == [0, 2, 3]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for index in range(40):
            yield torch.tensor([index / 40]), torch.tensor([index / 20])


def job(data: Any, folder: Path, **more: Any) -> Any:
    torch.manual_seed(0)
    return scalekit.fit(
        nn.Linear(1, 1), data, loss=nn.MSELoss(), strategy="single", precision="32-true", optimizer="sgd", max_steps=5,
        global_batch_size=4, learning_rate=0.1, lr_schedule="constant", gradient_clip=None, output_dir=str(folder), **more,
    ).history  # fmt: skip


def test_a_loader_of_a_stream_is_that_stream(tmp_path: Path) -> None:
    rows = list(Endless())
    expected = job(DataLoader(rows), tmp_path / "rows")
    found = job(DataLoader(Endless(), batch_size=8), tmp_path / "stream", micro_batch_size=2)
    assert [each["loss"] for each in found] == pytest.approx([each["loss"] for each in expected], rel=1e-5)


def test_a_loader_whose_data_set_makes_batches_is_refused() -> None:
    with pytest.raises(DataError, match="batch_size=None gives batches"):
        read_data(DataLoader(Endless(), batch_size=None))


def test_a_frame_is_its_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [[0.1], [0.2], [0.3], [0.4]], "y": [[0.2], [0.4], [0.6], [0.8]]}, index=[5, 6, 7, 8])
    rows = [{"x": x, "y": y} for x, y in zip(frame["x"], frame["y"], strict=True)]
    losses = [[each["loss"] for each in job(data, tmp_path / str(n))] for n, data in enumerate((frame, rows))]
    assert losses[0] == losses[1]
    with pytest.raises(DataError, match="the DataFrame has a column that holds more than one kind of value"):
        read_data(pd.DataFrame({"text": ["a", 1, [2]]}))
