"""Trains the model of a planner file under ZeRO-3 and reports what each phase allocated.

One rank of several whose collectives return at once, except that a reduce-scatter copies its input,
as gloo does.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from planner.engines.deepspeed.config import config
from planner.spec.load import Spec, load
from planner.validate.ledger import Ledger
from tests.real.worker_zero3 import start_alone

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build(spec: Spec) -> torch.nn.Module:
    """The model with random weights, partitioned as it is made."""
    assert isinstance(spec.model, dict)
    training = spec.training
    chosen = AutoConfig.for_model(**spec.model)
    chosen.use_cache = False
    dtype = DTYPES[training.precision]
    with deepspeed.zero.Init(config_dict_or_path=settings(spec), dtype=dtype):
        model = AutoModelForCausalLM.from_config(
            chosen, dtype=dtype, attn_implementation=training.attention
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
        model = build(spec)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
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
            with phase(f"{step}.backward"):
                engine.backward(loss)
            with phase(f"{step}.step"):
                engine.step()
    engine.destroy()


def settings(spec: Spec) -> dict[str, Any]:
    """The configuration that the planner writes, and what a client's own optimizer needs."""
    return config(
        training=spec.training,
        layout=spec.fixed_layout,
        deepspeed=spec.deepspeed,
        micro_steps=spec.micro_steps,
    ) | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def copy_like_gloo() -> None:
    """The fake group leaves buffers alone; gloo reduces in a copy of what it is given."""
    backend = deepspeed.comm.comm.cdb
    backend.reduce_scatter_tensor = _copying(backend.reduce_scatter_tensor)


def _copying(collective: Callable[..., Any]) -> Callable[..., Any]:
    def copied(*args: Any, **kwargs: Any) -> Any:
        whole = kwargs["input_tensor"] if "input_tensor" in kwargs else args[1]
        whole.clone()
        return collective(*args, **kwargs)

    return copied


def main() -> None:
    """Run the cases one after the other and write the readings of each."""
    case = json.loads(sys.argv[1])
    start_alone(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    deepspeed.init_distributed("fake")
    copy_like_gloo()
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
