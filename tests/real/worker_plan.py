"""Trains the model of a planner file under DeepSpeed and reports what each phase allocated."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from planner.engines.deepspeed.config import config
from planner.spec.load import Spec, load
from planner.spec.training import Training
from planner.validate.ledger import Ledger

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
KERNELS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}


def build(entry: dict[str, Any], training: Training) -> torch.nn.Module:
    """The model with random weights, as a training script makes it."""
    settings = AutoConfig.for_model(**entry)
    settings.use_cache = False
    model = AutoModelForCausalLM.from_config(
        settings, dtype=DTYPES[training.precision], attn_implementation=training.attention
    )
    model.train()
    if training.recompute == "full":
        model.gradient_checkpointing_enable()
    return model


def train(spec: Spec, ledger: Ledger, steps: int) -> None:
    """Initialise and take some steps; variables hold the batch and the output until they get new
    ones, as in a plain training loop."""
    training, phase = spec.training, ledger.books.phase
    with phase("init"):
        model = build(spec.model, training)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, **KERNELS[training.optimizer_kernel]
        )
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings(spec))
        del model, optimizer
    shape = (training.micro_batch_size, training.sequence_length)
    for step in range(steps):
        for _ in range(spec.micro_steps):
            with phase(f"{step}.forward"):
                tokens = torch.randint(0, engine.module.config.vocab_size, shape)
                batch = {"input_ids": tokens, "labels": tokens.clone()}
                output = engine(**batch)
                loss = output.loss
                if not training.keep_logits:
                    del output
            with phase(f"{step}.backward"):
                engine.backward(loss)
            with phase(f"{step}.step"):
                engine.step()
    engine.destroy()


def settings(spec: Spec) -> dict[str, Any]:
    """The configuration that the planner writes, and what a client's own optimizer needs."""
    return config(
        training=spec.training,
        layout=spec.layout,
        deepspeed=spec.deepspeed,
        micro_steps=spec.micro_steps,
    ) | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def init_distributed() -> None:
    """Collectives that return at once: gloo's threads would hold tensors a moment longer, so that
    a reading would differ from run to run."""
    torch.distributed.init_process_group(
        "fake",
        store=FakeStore(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    deepspeed.init_distributed("fake")


def main() -> None:
    """Run the cases one after the other and write the readings of each."""
    case = json.loads(sys.argv[1])
    init_distributed()
    readings = []
    for file in case["files"]:
        with Ledger() as ledger:
            train(load(Path(file)), ledger, case["steps"])
        readings.append([reading._asdict() for reading in ledger.books.readings])
        gc.collect()
        gc.freeze()  # what imports left behind needs no collection at every phase of the next case
    Path(sys.argv[2]).write_text(json.dumps(readings))


if __name__ == "__main__":
    main()
