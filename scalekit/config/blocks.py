"""Settings that have parts: data as a mapping, mixtures, samples that are generated, metrics; and what counts as each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number
from types import FunctionType
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from scalekit.config.markers import (
    Above,
    Count,
    Is,
    Needed,
    NotEmpty,
    Open,
    Place,
    Says,
    Text,
    Unit,
    function_of,
    is_a,
    takes,
)


class _DataKeys(TypedDict, total=False):
    path: Annotated[Place, Needed]
    name: Text | None
    split: Text | None
    revision: Text | None
    streaming: bool | None


class MixturePart(_DataKeys, total=False):
    """A part of a mixture, as a job file has it."""

    weight: Annotated[float, Above(0), Needed]


class DataBlock(_DataKeys, total=False):
    """Data, as a job file has it."""

    weight: Annotated[
        Any, Is("given only in a mixture: {mixture: [{path: ..., weight: ...}, ...]}", lambda weight: False)
    ]


class MixtureBlock(TypedDict, total=False):
    """A mixture, as a job file has it."""

    mixture: Annotated[
        Sequence[MixturePart], NotEmpty, Needed, Says("a list of at least one part, each with its path and its weight")
    ]


class Message(TypedDict, total=False):
    """A turn of a conversation."""

    role: Annotated[Text, Needed]
    content: Annotated[Text, Needed]


Conversation: TypeAlias = Annotated[
    Sequence[Annotated[Message, Open]], NotEmpty, Says("a conversation, which is a list of {role, content}")
]


class Generate(TypedDict, total=False):
    """Samples that are made with each evaluation."""

    prompts: Annotated[
        Sequence[Text | Conversation], NotEmpty, Needed, Says("a list of at least one text or conversation")
    ]
    max_new_tokens: Annotated[Count, Unit("tokens")]


class Best(TypedDict, total=False):
    """The metric by which a checkpoint is the best one."""

    metric: Annotated[Text, Needed]
    mode: Annotated[Literal["min", "max"], Needed]


MetricBlock = TypedDict("MetricBlock", {"class": Annotated[Text, Needed]}, total=False)
"""A metric, as a job file has it: a class of torchmetrics, and that class's own arguments."""


def _is_rows(value: Any) -> bool:
    """Whether something may be data, as far as that shows without the libraries that data comes from."""
    if isinstance(value, Mapping):
        return is_a(value, "datasets.DatasetDict", "datasets.IterableDatasetDict")
    if isinstance(value, (str, bytes, bytearray, set, frozenset, type, Number, FunctionType)) or is_a(
        value, "numpy.generic"
    ):
        return False
    known = ("scalekit.data.sources.mixture.Mixture", "torch.utils.data.Dataset", "torch.utils.data.DataLoader")
    return is_a(value, *known) or any(hasattr(value, name) for name in ("train_dataloader", "__getitem__", "__iter__"))


AnyRows: TypeAlias = Annotated[
    Any,
    Is(
        "rows: a list, a data set of Hugging Face's or torch's, a pandas DataFrame, a DataLoader, a LightningDataModule",
        _is_rows,
    ),
]
Source: TypeAlias = Annotated[
    AnyRows | Place | DataBlock | MixtureBlock,
    Says(
        "a hub id, a file, a folder, a mapping with the keys path, name, split, revision and streaming, a mixture, or rows: a "
        "list, a data set of Hugging Face's or torch's, a pandas DataFrame, a DataLoader, a LightningDataModule"
    ),
]

AnyModel: TypeAlias = Annotated[
    Any,
    Is(
        "an nn.Module, a LightningModule, a function without arguments that builds one",
        lambda value: is_a(value, "torch.nn.Module") or takes()(value),
    ),
]
AnyProcessor: TypeAlias = Annotated[
    Any,
    Is(
        "a tokenizer, an image processor, a feature extractor",
        lambda value: hasattr(value, "save_pretrained") and not isinstance(value, type),
    ),
]
AnyLoss: TypeAlias = Annotated[
    Any,
    Is(
        "a torch.nn loss such as nn.MSELoss(), a function of output and target",
        function_of("output", "target"),
    ),
]
AnyMetric: TypeAlias = Annotated[Any, Is("a torchmetrics Metric", lambda value: is_a(value, "torchmetrics.Metric"))]
AnyLogger: TypeAlias = Annotated[
    Any, Is("a Lightning logger", lambda value: is_a(value, "lightning.pytorch.loggers.Logger"))
]
AnyCallback: TypeAlias = Annotated[
    Any, Is("a Lightning callback", lambda value: is_a(value, "lightning.pytorch.Callback"))
]
