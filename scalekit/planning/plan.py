"""The plan of a job: how it will run, why, and what that was predicted to cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from scalekit.utils.log_handlers import line

_CHECKPOINTED = {"none": "", "selective": ", some activations checkpointed", "full": ", activations checkpointed"}


@dataclass(frozen=True)
class Plan:
    """How a job will run.

    Attributes:
        strategy, engine, precision, device: names.
        dtypes: of parameters, master weights, compute, reduction and optimizer state.
        world_size: ranks.
        global_batch_size, micro_batch_size: samples.
        accumulation: micro-batches an optimizer step and rank.
        activation_checkpointing: what of blocks is computed again in the backward pass.
        samples: rows of training data that an epoch runs; None of a stream.
        steps_per_epoch, total_steps: optimizer steps.
        loss: what it is a mean over.
        predicted: peak_bytes of a rank with its items and when it is, step_seconds; empty where the model cannot be traced.
        reasons: for each choice that was left to ScaleKit.
        model: its name.
        parameters, trained_parameters: elements; None where they are not known.
        tokens: of the training data, as it is encoded; None of a stream, and of rows that are no tokens.
        validation_samples: rows of the validation set that an evaluation runs; None where there is none.
        all_samples, all_validation_samples: as many as there are; None where that is not known.
    """

    strategy: str
    engine: str
    precision: str
    device: str
    dtypes: dict[str, str | None]
    world_size: int
    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    activation_checkpointing: str
    samples: int | None
    steps_per_epoch: int | None
    total_steps: int
    loss: str
    predicted: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    model: str = ""
    parameters: int | None = None
    trained_parameters: int | None = None
    tokens: int | None = None
    validation_samples: int | None = None
    all_samples: int | None = None
    all_validation_samples: int | None = None

    @property
    def flops_share(self) -> float | None:
        """The share of all devices' peak that a step would use if it took one second; None where no peak is known.

        A CPU's peak is one that ScaleKit measured in a moment, and nothing to compare a run with.
        """
        mfu = self.predicted.get("mfu") if self.device == "cuda" else None
        return None if mfu is None else mfu * self.predicted["step_seconds"]

    def as_dict(self) -> dict[str, Any]:
        """The plan as `plan.json` holds it."""
        return asdict(self)

    def __str__(self) -> str:
        """What is trained on what, how, and why: what the screen shows."""
        lines = [
            line("training", f"{self._model()} on {self._data()}; loss over {self.loss}"),
            line("plan", f"{self.strategy} on {self._ranks()} in {self.precision}, {self._batch()}"),
            *([line("", self._expected())] if self.predicted else []),
            *(line("because", reason) for reason in self.reasons),
        ]
        return "\n".join(lines)

    def details(self) -> list[tuple[str, str]]:
        """What ``log.txt`` has beside, by labels: the types, and when a rank's memory is fullest."""
        types = "  ".join(f"{name.replace('_', ' ')} {value or 'none'}" for name, value in self.dtypes.items())
        if not self.predicted:
            return [("types", types)]
        return [
            ("types", types),
            ("peak", f"{readable(self.predicted['peak_bytes'])} a rank, {self.predicted['when']}"),
        ]

    def _model(self) -> str:
        if self.parameters is None:
            return self.model
        share = (
            "" if self.parameters == self.trained_parameters else f", {_count(self.trained_parameters or 0)} trained"
        )
        return f"{self.model} ({_count(self.parameters)} parameters{share})"

    def _data(self) -> str:
        if self.samples is None:
            data = "a stream"
        else:
            data = f"{_out_of(self.samples, self.all_samples)} samples"
            data += f" ({_count(self.tokens)} tokens)" if self.tokens else ""
        if not self.validation_samples:
            return data
        return f"{data}, validation on {_out_of(self.validation_samples, self.all_validation_samples)}"

    def _ranks(self) -> str:
        kind = {"cuda": "GPU", "cpu": "CPU"}.get(self.device, self.device)
        return f"{self.world_size} {kind} rank" + ("s" if self.world_size > 1 else "")

    def _batch(self) -> str:
        factors = [f"{self.micro_batch_size} a rank"]
        factors += [f"{self.accumulation} accumulated"] if self.accumulation > 1 else []
        factors += [f"{self.world_size} ranks"] if self.world_size > 1 else []
        return (
            f"batches of {self.global_batch_size} = {' x '.join(factors)}{_CHECKPOINTED[self.activation_checkpointing]}"
        )

    def _expected(self) -> str:
        peak, seconds = readable(self.predicted["peak_bytes"]), self.predicted["step_seconds"]
        return f"expected: {peak} a rank at most, {seconds:.3g} s a step"


def _count(number: int) -> str:
    """A number as people write it: 842, 12.4K, 135M, 8.03B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def readable(size_bytes: float) -> str:
    """A size in GiB, or in MiB or KiB where it is smaller."""
    if size_bytes >= 2**30:
        return f"{size_bytes / 2**30:.2f} GiB"
    return f"{size_bytes / 2**20:.1f} MiB" if size_bytes >= 2**20 / 10 else f"{size_bytes / 2**10:.1f} KiB"


def _out_of(run: int, there: int | None) -> str:
    """How many rows are run, and of how many where those are more."""
    return f"{run:,}" if there is None or there == run else f"{run:,} of {there:,}"
