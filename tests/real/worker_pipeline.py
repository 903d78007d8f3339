"""Trains a `PipelineModule` of plain layers and reports what each instruction allocated.

Embedding, linear layers without bias, a linear head and a cross-entropy: what their passes save
is plain, so that every other byte is the pipeline engine's or the optimizer's.
"""

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch.nn.functional import cross_entropy, linear

from planner.validate.collectives import settled_collectives
from planner.validate.ledger import Books, Ledger

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
KERNELS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}


class Inner(torch.nn.Linear):
    """Has a name of its own, by which it is chosen to be recomputed."""


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in fp32 over the flattened tokens."""
    wide = logits.float().view(-1, logits.shape[-1])
    return cross_entropy(wide, labels.view(-1))


def by_embedding(module: torch.nn.Embedding, hidden: torch.Tensor) -> torch.Tensor:
    """A head that multiplies by the embedding's weight."""
    return linear(hidden, module.weight)


def build(case: dict[str, Any]) -> PipelineModule:
    """The model of a case; one stage's layers are made on each rank."""
    hidden, vocab = case["hidden"], case["vocab"]
    kind = {"dtype": DTYPES[case["precision"]]}
    if case.get("tied"):
        stem = TiedLayerSpec("embedding", torch.nn.Embedding, vocab, hidden, **kind)
        head = TiedLayerSpec(
            "embedding", torch.nn.Embedding, vocab, hidden, forward_fn=by_embedding, **kind
        )
    else:
        stem = LayerSpec(torch.nn.Embedding, vocab, hidden, **kind)
        head = LayerSpec(torch.nn.Linear, hidden, vocab, bias=False, **kind)
    inner = [LayerSpec(Inner, hidden, hidden, bias=False, **kind) for _ in range(case["layers"])]
    return PipelineModule(
        [stem, *inner, head],
        num_stages=case["pp"],
        loss_fn=loss_of,
        partition_method="uniform",
        activation_checkpoint_interval=case.get("checkpoint_interval", 0),
        checkpointable_layers=["Inner"],
    )


def batches(case: dict[str, Any], stage: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Micro-batches; what a data loader keeps on the host is not among what is booked."""
    shape = (case["batch"], case["length"])
    tokens = case["tokens"]
    last = stage == case["pp"] - 1
    while True:
        yield tokens, torch.zeros(shape, dtype=torch.int64) if last else tokens


def read_instructions(books: Books, step: list[int]) -> None:
    """Have every instruction that the engine executes read as a phase of its own."""
    for kind, method in PipelineEngine._INSTRUCTION_MAP.items():
        PipelineEngine._INSTRUCTION_MAP[kind] = _read(books, kind.__name__, method, step)


def _read(books: Books, name: str, method: Any, step: list[int]) -> Any:
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        with books.phase(f"{step[0]}.{name}.{kwargs.get('buffer_id', -1)}"):
            method(self, *args, **kwargs)

    return run


def train(case: dict[str, Any], ledger: Ledger) -> None:
    """Initialise and take the steps of the case."""
    books, step = ledger.books, [0]
    read_instructions(books, step)
    with books.phase("init"):
        model = build(case)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=1e-4,
            **KERNELS[case.get("kernel", "fused")],
        )
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=case["config"])
        del model, optimizer
    data = batches(case, engine.stage_id)
    for step[0] in range(case.get("steps", 2)):
        with books.phase(f"{step[0]}.rest"):
            pass
        engine.train_batch(data)
    with books.phase("end"):
        pass


def main() -> None:
    """Run the case of the command line and write the readings."""
    case, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    gc.freeze()  # readings collect garbage twice a phase: what the imports made need not be seen
    case["tokens"] = torch.zeros((case["batch"], case["length"]), dtype=torch.int64)
    with settled_collectives():
        deepspeed.init_distributed("gloo")
        with Ledger() as ledger:
            train(case, ledger)
    output.write_text(json.dumps([reading._asdict() for reading in ledger.books.readings]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
