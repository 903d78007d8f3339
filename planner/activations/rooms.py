"""The parameters of a layer on a machine; of several layers, which a machine enters in turn."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from planner.activations.eager import Machine, Tensor
from planner.activations.programs.case import Case
from planner.layout.experts import ExpertCut, expert_holder, expert_pieces
from planner.model.adapters import PACKED
from planner.model.description import Parameter

Shapes = tuple[tuple[int, ...], ...]


class Room(NamedTuple):
    """A layer, and what the machine holds for it: tensors and their numbers, by name."""

    case: Case
    parameters: dict[str, Tensor]
    indices: dict[str, int]

    def enter(self, machine: Machine) -> None:
        """Have names stand for this layer's parameters."""
        machine.parameters, machine.indices = self.parameters, self.indices

    @property
    def first(self) -> int:
        """The number of the layer's first parameter."""
        return min(self.indices.values(), default=0)


def furnished(machine: Machine, layers: Sequence[tuple[Case, Shapes]]) -> Iterator[Room]:
    """Each layer with its parameters, numbered through; the machine is left in the last one."""
    first = 0
    for case, shapes in layers:
        room = Room(case, {}, {})
        room.enter(machine)
        machine.adapter_dropout = case.layer.adapter_dropout
        native = expert_holder(case.layout, case.deepspeed) == "moe"
        own = case.layer.parameters
        for index, parameter in enumerate(own):
            if not (native and parameter.routed):
                _place(machine, parameter, first + index, shapes[index], case.dtype)
        first += len(own)
        first += _place_experts(machine, case, first) if native else 0
        yield room


def _place(
    machine: Machine, parameter: Parameter, index: int, shape: tuple[int, ...], dtype: str
) -> None:
    """A frozen one has no gradient; four-bit ones are told by their name."""
    kind = "fp32" if parameter.stored.startswith("fp32") else dtype
    machine.parameter(parameter.name, index, shape, kind)
    if not parameter.trained:
        machine.parameters[parameter.name].edge = None
    if parameter.stored in PACKED:
        machine.packed[parameter.name] = PACKED[parameter.stored]
    if parameter.stored == "fp32_autocast":
        machine.autocast = dtype


def _place_experts(machine: Machine, case: Case, first: int) -> int:
    """DeepSpeed's MoE layer: each expert's matrices, which count after the layer's own."""
    own = case.layer.parameters
    routed = [index for index, parameter in enumerate(own) if parameter.routed]
    pieces = expert_pieces(own, routed, ExpertCut("moe", case.layout.ep, 1)) if routed else []
    for index, (source, piece) in enumerate(pieces, first):
        columns = own[source].shape[-1]
        machine.parameter(piece.name, index, (piece.numel // columns, columns), case.dtype)
    return len(pieces)
