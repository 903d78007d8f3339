"""From a layer and a training set-up to its tape."""

from dataclasses import dataclass
from functools import lru_cache

from planner.activations.eager import (
    Backend,
    Machine,
    Sink,
    Tensor,
    checkpoint,
    empty,
    run_backward,
)
from planner.activations.fold import by_label, fold
from planner.activations.programs import hf_ends, hf_llama
from planner.activations.programs.case import Case
from planner.activations.programs.norms import normalise
from planner.activations.tape import LayerTape, Mark
from planner.memory.terms import Term
from planner.model.description import Layer, Model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A layer's forward and backward pass as a machine wrote it down."""

    machine: Machine
    forward: tuple[int | Mark, ...]
    backward: tuple[int | Mark, ...]
    saved: tuple[int, ...]
    """Allocations that are alive between the passes, the output left out."""
    entry: int
    """The allocation that is the layer's input; 0: none."""
    input_saved: bool
    output_bytes: int
    held_bytes: int


@lru_cache(maxsize=4096)
def layer_tape(
    layer: Layer,
    *,
    model: Model,
    training: Training,
    layout: Layout,
    deepspeed: DeepSpeed,
    tied_head: bool = False,
    keeps_stem: bool = False,
    backend: Backend = "cuda",
    modules: bool = False,
) -> LayerTape:
    """What one micro-batch allocates and frees in one pass through ``layer``.

    ``tied_head``: the head uses the embedding's weight on the same rank, so that its gradient
    waits inside autograd until the embedding's backward pass adds to it. ``backend``: whose
    kernels run; ``cpu`` is also what a Python ledger sees, see `eager.autograd.accumulate`.
    ``keeps_stem``: the model holds the stem's output until the last norm has run, so the first
    block does not free it and the last norm does; `stage_tapes` knows when.
    ``modules``: mark where modules are entered and left, as ZeRO-3 needs it.
    """
    case = _case(
        layer, model, training, layout, deepspeed, tied_head=tied_head, keeps_stem=keeps_stem
    )
    run = run_layer(case, backend=backend, modules=modules)
    machine = run.machine
    return LayerTape(
        forward=fold(
            run.forward,
            machine.sizes,
            machine.terms,
            becomes_saved=machine.sizes[run.entry] if run.input_saved else 0,
        ),
        backward=fold(run.backward, machine.sizes, machine.terms),
        output_bytes=run.output_bytes,
        held_bytes=run.held_bytes,
        input_saved=run.input_saved,
    )


def saved_by_component(
    layer: Layer,
    *,
    model: Model,
    training: Training,
    layout: Layout,
    deepspeed: DeepSpeed,
    backend: Backend = "cuda",
) -> dict[str, int]:
    """Bytes that the layer keeps from its forward to its backward pass, by part of the layer."""
    case = _case(layer, model, training, layout, deepspeed)
    run = run_layer(case, backend=backend, modules=False)
    return by_label(run.saved, run.machine.sizes, run.machine.labels)


def _case(
    layer: Layer,
    model: Model,
    training: Training,
    layout: Layout,
    deepspeed: DeepSpeed,
    *,
    tied_head: bool = False,
    keeps_stem: bool = False,
) -> Case:
    attention = model.blocks[0].layer.attention if model.blocks else None
    return Case(
        layer=layer,
        family=model.family,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        training=training,
        layout=layout,
        deepspeed=deepspeed,
        rotary_size=0 if attention is None else attention.rotary_size,
        tied_head=tied_head,
        keeps_stem=keeps_stem,
    )


def stage_tapes(
    layers: tuple[Layer, ...],
    *,
    model: Model,
    training: Training,
    layout: Layout,
    deepspeed: DeepSpeed,
    backend: Backend = "cuda",
    modules: bool = False,
) -> tuple[LayerTape, ...]:
    """The tapes of a pipeline stage's layers, or of a whole model's, in the order of forward."""
    kinds = [layer.kind for layer in layers]
    whole = "stem" in kinds and "norm" in kinds and "block" in kinds
    tied_head = model.tied and "stem" in kinds and "head" in kinds
    first = kinds.index("block") if whole else None

    def tape(place: int, *, keeps_stem: bool) -> LayerTape:
        return layer_tape(
            layers[place],
            model=model,
            training=training,
            layout=layout,
            deepspeed=deepspeed,
            tied_head=tied_head,
            keeps_stem=keeps_stem,
            backend=backend,
            modules=modules,
        )

    keeps = first is not None and not tape(first, keeps_stem=False).input_saved
    return tuple(
        tape(place, keeps_stem=keeps and (place == first or kinds[place] == "norm"))
        for place in range(len(layers))
    )


def run_layer(case: Case, *, backend: Backend, modules: bool) -> Pass:
    """Run the layer's program forward and backward on a new machine."""
    machine = Machine(backend=backend, in_place=backend == "cuda", modules=modules)
    _register(machine, case)
    match case.layer.kind:
        case "stem":
            return _run_stem(machine, case)
        case "head":
            return _run_head(machine, case)
        case _:
            return _run_inner(machine, case)


def _register(machine: Machine, case: Case) -> None:
    """The layer's parameters as this rank holds them."""
    tp, ep = case.layout.tp, case.layout.ep
    for index, parameter in enumerate(case.layer.parameters):
        shape = list(parameter.shape)
        if parameter.tp_dim is not None:
            shape[parameter.tp_dim] //= tp
        if parameter.routed and len(shape) == 3:
            shape[0] //= ep
        machine.parameter(parameter.name, index, tuple(shape), case.dtype)


def _run_inner(machine: Machine, case: Case) -> Pass:
    """A block or the last norm: hidden states in, hidden states out."""
    collected: list[Tensor] = []
    shape = (case.batch, case.length, case.hidden_size)
    hidden = machine.external(shape, case.dtype, sink=Sink(collected.append, seq=0))
    entry = hidden.storage.index
    if case.layer.kind == "norm":
        output = normalise(machine, case.norm, hidden, "")
        hf_ends.leave_blocks(machine, case)
    elif case.training.recompute == "full":
        output = checkpoint(lambda x: hf_llama.block(machine, case, x), hidden)
    else:
        output = hf_llama.block(machine, case, hidden)
    if case.keeps_stem and case.layer.kind == "block":
        machine.disown(hidden)
    del hidden
    saved, input_saved, output_bytes = _pause(machine, entry, output)
    split = len(machine.events)
    edge = output.edge
    del output
    assert edge is not None
    run_backward(edge, machine.external(shape, case.dtype))
    return Pass(
        machine=machine,
        forward=tuple(machine.events[:split]),
        backward=tuple(machine.events[split:]),
        saved=saved,
        entry=entry,
        input_saved=input_saved,
        output_bytes=output_bytes,
        held_bytes=0,
    )


def _pause(machine: Machine, entry: int, output: Tensor) -> tuple[tuple[int, ...], bool, int]:
    """Between the passes: what is alive is saved; the output is the next layer's."""
    output_bytes = output.storage.size
    machine.disown(output)
    machine.settle()
    saved = tuple(sorted(machine.live))
    return saved, entry in machine.live, output_bytes


def _forget(machine: Machine, tensors: list[Tensor]) -> None:
    """Another layer's tape frees them."""
    for tensor in tensors:
        machine.disown(tensor)


def _run_stem(machine: Machine, case: Case) -> Pass:
    """Token ids in, hidden states out."""
    output, shared = hf_ends.stem(machine, case)
    saved, _, output_bytes = _pause(machine, 0, output)
    if case.training.recompute != "full":
        _forget(machine, shared.forward)
    split = len(machine.events)
    edge = output.edge
    shape = output.shape
    del output, shared
    assert edge is not None
    run_backward(edge, machine.external(shape, case.dtype))
    return Pass(
        machine=machine,
        forward=tuple(machine.events[:split]),
        backward=tuple(machine.events[split:]),
        saved=saved,
        entry=0,
        input_saved=False,
        output_bytes=output_bytes,
        held_bytes=0,
    )


def _run_head(machine: Machine, case: Case) -> Pass:
    """Hidden states in, a loss out; backward begins with the loss's own gradient."""
    collected: list[Tensor] = []
    shape = (case.batch, case.length, case.hidden_size)
    hidden = machine.external(shape, case.dtype, sink=Sink(collected.append, seq=0))
    entry = hidden.storage.index
    logits, loss = hf_ends.head_and_loss(machine, case, hidden)
    del hidden
    held = [loss]
    if case.training.keep_logits:
        held.append(logits)
    del logits
    saved, input_saved, _ = _pause(machine, entry, loss)
    split = len(machine.events)
    edge = loss.edge
    assert edge is not None
    with machine.booked_as(Term.LOGITS):
        held.append(empty(machine, (), "fp32"))
    run_backward(edge, held[-1])
    held_bytes = sum(tensor.storage.size for tensor in held)
    end = len(machine.events)
    return Pass(
        machine=machine,
        forward=tuple(machine.events[:split]),
        backward=tuple(machine.events[split:end]),
        saved=saved,
        entry=entry,
        input_saved=input_saved,
        output_bytes=0,
        held_bytes=held_bytes,
    )
