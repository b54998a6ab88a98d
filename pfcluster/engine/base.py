"""What an engine promises: one module and one optimizer, and everything between a loss and the next weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

StateDict = dict[str, Tensor]


class NonFiniteError(RuntimeError):
    """A gradient is not finite. The weights are those from before the step."""


class Engine(ABC):
    """Owns a module and its optimizer. Steps (`steps/`) know nothing else of precision, processes or sharding.

    A step is any number of `__call__` and `backward` pairs, of which only the last synchronises, then one `step()`.
    """

    module: nn.Module
    """The module itself, its parameters whole or cut as the engine keeps them."""
    updates: int = 0
    """Steps taken since the start of the process: tells which engines already moved when a training step failed."""

    @abstractmethod
    def __call__(self, *inputs: Any, sync: bool = True, **named: Any) -> Any:
        """Forward pass under the engine's precision. `sync=False` keeps the gradients of this pass local for now."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those collected."""

    @abstractmethod
    def step(self) -> Tensor:
        """Clip, update the weights, forget the gradients; -> the gradients' global norm before clipping, a scalar.

        Raises NonFiniteError, on all ranks together, and leaves the weights alone.
        """

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Learning rate of the next steps."""

    @abstractmethod
    def precision(self) -> AbstractContextManager[Any]:
        """The autocast under which this engine's module computes."""

    @contextmanager
    def frozen(self) -> Iterator[Callable[..., Any]]:
        """The raw module, under this engine's precision, with its parameters' gradients off: to be used inside another
        engine's backward.

        Nothing else may be used there: called through itself, or unfrozen, a sharded engine is silently wrong.
        """
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)

        def judge(*inputs: Any) -> Any:
            with self.precision():
                return self.module(*inputs)

        try:
            yield judge
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    @abstractmethod
    def model_state(self) -> StateDict:
        """Whole weights by name, on the CPU or the device."""

    @abstractmethod
    def optimizer_state(self) -> StateDict:
        """Whole optimizer tensors by `<parameter's name>/<slot>`."""

    @abstractmethod
    def load(self, model: StateDict, optimizer: StateDict | None) -> None:
        """Take over what `model_state` and `optimizer_state` gave."""
