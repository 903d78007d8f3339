"""Trains the model of a planner file under DeepSpeed and reports what each phase allocated."""

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
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
    """Initialise and take some steps; the loop holds the model's output until a step is over."""
    training, phase = spec.training, ledger.books.phase
    with phase("init"):
        model = build(spec.model, training)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, **KERNELS[training.optimizer_kernel]
        )
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=config(
                training=training,
                layout=spec.layout,
                deepspeed=spec.deepspeed,
                micro_steps=spec.micro_steps,
            )
            | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False},
        )
        del model, optimizer
    shape = (training.micro_batch_size, training.sequence_length)
    for step in range(steps):
        for micro_step in range(spec.micro_steps):
            name = f"{step}.{micro_step}"
            with phase(f"{name}.forward"):
                tokens = torch.randint(0, engine.module.config.vocab_size, shape)
                output = engine(input_ids=tokens, labels=tokens.clone())
            with phase(f"{name}.backward"):
                engine.backward(output.loss)
            if not training.keep_logits or micro_step + 1 < spec.micro_steps:
                del output
            if micro_step + 1 < spec.micro_steps:
                engine.step()
        with phase(f"{step}.step"):
            engine.step()
            output = None


def main() -> None:
    """Run the case and write the readings."""
    case = json.loads(sys.argv[1])
    spec = load(Path(case["file"]))
    deepspeed.init_distributed("gloo")
    with Ledger() as ledger:
        train(spec, ledger, case["steps"])
    readings = [reading._asdict() for reading in ledger.books.readings]
    Path(sys.argv[2]).write_text(json.dumps(readings))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
