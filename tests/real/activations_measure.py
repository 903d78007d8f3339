"""What a real transformers model allocates, allocation by allocation, beside what the tape says."""

import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from planner.activations.layers import placed, run_once
from planner.activations.run import Pass
from planner.activations.tape import Mark
from planner.model.description import Model
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training

SEQUENCES, TOKENS, VOCABULARY = 2, 64, 1000
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NOT_MODELLED = 1100
"""Index tensors and scalars up to this many bytes are not compared one by one; what they hold
while larger ones are allocated is in the totals, except in the stem."""


class Allocation(NamedTuple):
    """One allocation and how much was live right after it."""

    size: int
    live: int


class Trace(TorchDispatchMode):  # type: ignore[misc]
    """Writes down every storage at first sight; parameters and the batch must be seen before."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.allocations: list[Allocation] = []
        self.live = 0
        self._seen: dict[int, int] = {}
        for tensor in known:
            self._seen[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor):
                self._book(leaf.untyped_storage())
        return result

    def _book(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return
        self._seen[key] = size
        self.live += size
        self.allocations.append(Allocation(size, self.live))
        weakref.finalize(storage, self._strike, key, size)

    def _strike(self, key: int, size: int) -> None:
        self.live -= size
        self._seen.pop(key, None)


class Setting(NamedTuple):
    """How the small model is trained."""

    attention: str = "sdpa"
    precision: str = "bf16"
    recompute: str = "none"


def build(config: dict[str, Any], setting: Setting) -> torch.nn.Module:
    """The real model, in training mode, without a cache of keys and values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    real = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config, use_cache=False), attn_implementation=setting.attention
    )
    if setting.recompute == "full":
        real.activation_checkpointing_enable()
    return real.to(DTYPES[setting.precision]).train()


def traced(real: torch.nn.Module) -> list[Allocation]:
    """A step of the real model, up to the end of backward."""
    ids = torch.randint(0, VOCABULARY, (SEQUENCES, TOKENS))
    trace = Trace([*real.parameters(), *real.buffers(), ids])
    with trace:
        output = real(input_ids=ids, labels=ids)
        output.loss.backward()
    return trace.allocations


def described(config: dict[str, Any], real: torch.nn.Module) -> Model:
    """The same configuration as our own description."""
    return load_model(config | {"architectures": [type(real).__name__]}, folder=Path())


def predicted(
    model: Model,
    setting: Setting,
    *,
    layout: Layout | None = None,
    tokens: int = TOKENS,
    in_place: bool = False,
) -> list[Allocation]:
    """The tapes' allocations of the same step."""
    training = Training(
        sequence_length=tokens,
        micro_batch_size=SEQUENCES,
        attention=setting.attention,  # type: ignore[arg-type]
        precision=setting.precision,  # type: ignore[arg-type]
        recompute=setting.recompute,  # type: ignore[arg-type]
    )
    layers = tuple(placed.layer for placed in model.placed())
    return replay(
        [
            run_once(
                layer,
                model=model,
                training=training,
                layout=layout or Layout(dp=1),
                deepspeed=DeepSpeed(),
                tied_head=tied,
                boundary=boundary,
                backend="cpu",
                in_place=in_place,
            )
            for layer, tied, boundary in placed(layers, tied=model.tied)
        ]
    )


def replay(passes: list[Pass]) -> list[Allocation]:
    """Allocations of a whole micro-batch; gradients of parameters stay alive."""
    live = 0
    result = []
    for run, events in [(run, run.forward) for run in passes] + [
        (run, run.backward) for run in reversed(passes)
    ]:
        sizes = run.machine.sizes
        previous = 0
        for event in events:
            if isinstance(event, Mark):
                if event.kind == "gradient":
                    live += sizes[-previous]
            elif event > 0:
                live += sizes[event]
                result.append(Allocation(sizes[event], live))
            else:
                live -= sizes[-event]
            previous = event if isinstance(event, int) else 0
    return result


def large(allocations: list[Allocation], threshold: int = NOT_MODELLED) -> list[Allocation]:
    """Those above the size of index tensors and scalars."""
    return [entry for entry in allocations if entry.size > threshold]


def difference(
    real: list[Allocation], ours: list[Allocation], *, stem: int = 0, slack: int = 0
) -> list[str]:
    """Where the two lists part; of the first ``stem`` entries only the sizes are compared."""
    faults = [] if len(real) == len(ours) else [f"{len(real)} allocations, {len(ours)} predicted"]
    for place, (measured, expected) in enumerate(zip(real, ours, strict=False)):
        apart = abs(measured.live - expected.live)
        if measured.size != expected.size or (place >= stem and apart > slack):
            faults.append(f"{place}: {measured}, predicted {expected}")
    return faults[:8]
