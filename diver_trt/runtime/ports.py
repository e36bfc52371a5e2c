"""The named inputs and outputs of an open network, and the errors of using them wrongly."""

from __future__ import annotations

from collections.abc import Iterable

from diver_trt.contract import NetworkName
from diver_trt.errors import EngineError
from diver_trt.tensors import TensorSpec


class Ports:
    """What every engine checks before it touches a buffer.

    Args:
        network: Name of the network.
        inputs: Its inputs, in the graph's order.
        outputs: Its outputs, in the graph's order.

    Attributes:
        inputs: Each input's type and shape by name.
        outputs: Each output's type and shape by name.
    """

    def __init__(
        self, network: NetworkName, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
    ) -> None:
        self._network = network
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self._closed = False

    @property
    def all(self) -> dict[str, TensorSpec]:
        """Every input and output."""
        return {**self.inputs, **self.outputs}

    def require_open(self) -> None:
        """Check that the engine is open.

        Raises:
            EngineError: If it is closed.
        """
        if self._closed:
            raise EngineError(f"the {self._network} engine is closed; open a new one")

    def require_input(self, name: str) -> None:
        """Check that the engine is open and has an input.

        Raises:
            EngineError: If it is closed, or does not have this input.
        """
        self._require(name, self.inputs, "input")

    def require_output(self, name: str) -> None:
        """Check that the engine is open and has an output.

        Raises:
            EngineError: If it is closed, or does not have this output.
        """
        self._require(name, self.outputs, "output")

    def close(self) -> None:
        """Make every further check fail."""
        self._closed = True

    def _require(self, name: str, specs: dict[str, TensorSpec], kind: str) -> None:
        self.require_open()
        if name not in specs:
            raise EngineError(
                f"the {self._network} has no {kind} {name!r}; expected {', '.join(specs)}"
            )
