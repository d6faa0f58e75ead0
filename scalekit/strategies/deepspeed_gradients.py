"""Parameters that get no gradient, which DeepSpeed takes for one of 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from torch import Tensor, nn

from scalekit.distributed.collectives import Collectives
from scalekit.errors import ConfigError


@final
class FirstGradients:
    """Notes which parameters get a gradient in the first step.

    Args:
        parameters: of the model.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._met: set[int] = set()
        trained = [each for each in parameters if each.requires_grad]
        self._hooks = [each.register_hook(_Note(self._met, id(each))) for each in trained]  # type: ignore[no-untyped-call]

    def check(self, decayed: Iterable[nn.Parameter], names: Mapping[int, str], collectives: Collectives) -> None:
        """Whether parameters without a gradient stay as they are; called once, after the first step.

        Args:
            decayed: parameters that weight decay changes.
            names: of parameters, by their identity.
            collectives: of the job's ranks.

        Raises:
            ConfigError: weight decay would change one, as under no other strategy.
        """
        for hook in self._hooks:
            hook.remove()
        own = [names[id(parameter)] for parameter in decayed if id(parameter) not in self._met]
        missing = sorted(set.intersection(*map(set, collectives.gather(own))))
        if missing:
            raise ConfigError(
                f"{missing[0]!r}{f' and {len(missing) - 1} more parameters' if len(missing) > 1 else ''} had no gradient in "
                "the first step. DeepSpeed's weight decay changes such parameters, which no other strategy does: freeze them "
                "(requires_grad_(False)), set weight_decay=0, or take ddp or fsdp2"
            )


class _Note:
    """Notes that a parameter got a gradient."""

    def __init__(self, met: set[int], parameter: int) -> None:
        self._met, self._parameter = met, parameter

    def __call__(self, gradient: Tensor) -> None:
        self._met.add(self._parameter)
