"""ZeRO stage 0: every rank keeps everything.

fp32 models are stepped by the optimizer itself. 16-bit models get fp32 master weights from
`FP16_Optimizer` (flat; with DeepSpeed's own fused Adam) or `FP16_UnfusedOptimizer` (tensor by
tensor; any other optimizer), whatever their 16-bit dtype is (runtime/engine.py:2313-2323 and
2555-2609 of DeepSpeed 0.19.8). Both step the optimizer on zeros at initialisation.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from planner.engines.deepspeed.allreduce import Accumulated, accumulated, allreduce_bytes
from planner.engines.deepspeed.dtypes import sizes
from planner.engines.deepspeed.notes import Note
from planner.engines.deepspeed.optimizers import state_bytes, temporary_bytes
from planner.engines.deepspeed.partition import parameter_groups
from planner.engines.deepspeed.state_notes import whole_notes
from planner.engines.deepspeed.strategy import Setup, WholeWeights
from planner.engines.elements import FP32_BYTES, SIZES
from planner.memory.terms import Term
from planner.memory.timeline import Timeline


@dataclass(slots=True, kw_only=True)
class Unpartitioned(WholeWeights):
    """The `Strategy` of stage 0; ``master`` says how the fp32 weights are kept."""

    setup: Setup
    master: str
    """``none``, ``flat`` or ``apart``."""
    groups: tuple[tuple[int, ...], ...]
    """Elements of the parameters of each group."""
    reduce_bytes: int
    gradients: Accumulated
    _stepped: bool = False

    def initialise(self, timeline: Timeline) -> None:
        """Clone the master weights and step the optimizer on zero gradients."""
        timeline.add(Term.WEIGHTS, self._numel() * self._element_bytes())
        if self.master == "none":
            return
        for group in self.groups:
            if self.master == "flat":
                self._clone_flat(timeline, group)
            else:
                self._clone_apart(timeline, group)
        zeros = self._numel() * FP32_BYTES
        if self.master == "apart":
            zeros += self._numel() * self._element_bytes()
        timeline.add(Term.INIT_COPIES, zeros)
        self._update(timeline, Term.INIT_COPIES)
        timeline.add(Term.INIT_COPIES, -zeros)

    def rhythm(self, micro_step: int) -> Hashable:
        """The first micro-step's gradients stay; the last one reduces."""
        return micro_step == 0, micro_step == self.setup.micro_steps - 1

    def is_even(self) -> bool:
        """Each gradient is on its own."""
        return True

    def begin_backward(self, timeline: Timeline, micro_step: int) -> None:
        """Remember which micro-step it is."""
        del timeline
        self.gradients.micro_step = micro_step

    def gradient(self, timeline: Timeline, parameter: int) -> None:
        """Autograd accumulates; nothing is hooked."""
        self.gradients.arrive(timeline, parameter)

    def end_backward(self, timeline: Timeline, micro_step: int) -> None:
        """All-reduce at the boundary (runtime/engine.py:3089-3095); pipelines do in `reduce`."""
        if self.setup.layout.pp == 1 and micro_step == self.setup.micro_steps - 1:
            self.reduce(timeline)

    def reduce(self, timeline: Timeline) -> None:
        """Flatten and all-reduce the gradients in the model's own order."""
        if self.reduce_bytes:
            timeline.spike(Term.REDUCE_COPIES, self.reduce_bytes)

    def step(self, timeline: Timeline) -> None:
        """Cast the gradients to fp32 and step the optimizer."""
        if self.master == "flat":
            self._step_flat(timeline)
        elif self.master == "apart":
            self._step_apart(timeline)
        else:
            self._update(timeline, Term.STEP_COPIES)
            self.gradients.free(timeline)

    def host_bytes(self, index: int) -> dict[str, int]:
        """Nothing is kept on the host."""
        del index
        return {}

    def notes(self) -> tuple[Note, ...]:
        """Why each term is as large as it is."""
        return whole_notes(
            self.setup,
            flat=self.master == "flat",
            master=self.master != "none",
            reduce_bytes=self.reduce_bytes,
        )

    def _numel(self) -> int:
        return sum(map(sum, self.groups))

    def _element_bytes(self) -> int:
        return SIZES[self.setup.training.precision]

    def _clone_flat(self, timeline: Timeline, group: Sequence[int]) -> None:
        """Clone all parameters, flatten, clone that, cast (fp16/fused_optimizer.py:94-100)."""
        size = sum(group) * self._element_bytes()
        timeline.add(Term.INIT_COPIES, size)
        if len(group) > 1:
            timeline.add(Term.INIT_COPIES, size)
            timeline.add(Term.INIT_COPIES, -size)
        # The flat copy takes the place of the parameters' own tensors, which go.
        timeline.add(Term.INIT_COPIES, -size)
        timeline.add(Term.INIT_COPIES, size)
        timeline.add(Term.MASTER_WEIGHTS, sum(group) * FP32_BYTES)
        timeline.add(Term.INIT_COPIES, -size)

    def _clone_apart(self, timeline: Timeline, group: Sequence[int]) -> None:
        """Each parameter's clone and its cast (fp16/unfused_optimizer.py:78)."""
        for numel in group:
            timeline.add(Term.INIT_COPIES, numel * self._element_bytes())
            timeline.add(Term.MASTER_WEIGHTS, numel * FP32_BYTES)
            timeline.add(Term.INIT_COPIES, -numel * self._element_bytes())

    def _update(self, timeline: Timeline, term: Term) -> None:
        """One step of the optimizer, group by group; its first creates the states."""
        for group in self.groups:
            tensors = [sum(group)] if self.master == "flat" else group
            if not self._stepped:
                states = sum(state_bytes(self.setup.training, numel) for numel in tensors)
                timeline.add(Term.OPTIMIZER_STATES, states)
            temporaries = temporary_bytes(self.setup.training, tensors)
            if temporaries:
                timeline.spike(term, temporaries)
        self._stepped = True

    def _step_flat(self, timeline: Timeline) -> None:
        """Casts of all gradients, then their flat copy; then the casts and the gradients go.

        Source: runtime/fp16/fused_optimizer.py:284-323 of DeepSpeed 0.19.8.
        """
        for group in self.groups:
            cast = sum(group) * FP32_BYTES
            timeline.add(Term.STEP_COPIES, cast)
            if len(group) > 1:
                timeline.spike(Term.STEP_COPIES, cast)
            timeline.add(Term.GRADIENTS, -sum(group) * self._element_bytes())
        self._update(timeline, Term.STEP_COPIES)
        timeline.add(Term.STEP_COPIES, -self._numel() * FP32_BYTES)

    def _step_apart(self, timeline: Timeline) -> None:
        """An fp32 copy for the norm of each gradient, then a cast of each; they go at the end.

        Source: runtime/fp16/unfused_optimizer.py:207-245 of DeepSpeed 0.19.8.
        """
        for group in self.groups:
            timeline.spike(Term.STEP_COPIES, max(group) * FP32_BYTES)
            timeline.add(Term.STEP_COPIES, sum(group) * FP32_BYTES)
        self._update(timeline, Term.STEP_COPIES)
        timeline.add(Term.STEP_COPIES, -self._numel() * FP32_BYTES)
        self.gradients.free(timeline)


def unpartitioned(setup: Setup) -> Unpartitioned:
    """Stage 0 of the layout."""
    size = sizes(setup)
    dense = [p.numel for p in setup.parameters if not p.expert]
    experts = [p.numel for p in setup.parameters if p.expert]
    return Unpartitioned(
        setup=setup,
        master=master_kind(setup),
        groups=tuple(
            tuple(setup.parameters[i].numel for i in group) for group in parameter_groups(setup)
        ),
        reduce_bytes=max(
            allreduce_bytes(numels, size.model, size.communication) for numels in (dense, experts)
        ),
        gradients=accumulated(setup),
    )


def master_kind(setup: Setup) -> str:
    """How the fp32 weights are kept: `Unpartitioned.master`."""
    training = setup.training
    if training.precision == "fp32":
        return "none"
    fused_adam = training.optimizer == "adamw" and training.optimizer_kernel == "fused"
    return "flat" if fused_adam else "apart"
