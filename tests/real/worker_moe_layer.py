"""Runs DeepSpeed's MoE layer in a transformer, allocation by allocation or under its engine.

Experts of a transformers model are replaced by ours, which is DeepSpeed's layer with gated MLPs.
Collectives return at once, so that every reading is repeatable.
"""

import gc
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from planner.activations.layers import placed, run_once
from planner.engines.deepspeed.config import config
from planner.model.description import Model, Moe
from planner.model.load import load_model
from planner.spec.load import Spec, load
from planner.validate.ledger import Ledger
from planner.validate.reference.experts import DeepSpeedExperts
from planner.validate.train.optimizer import make_optimizer
from tests.real.activations_measure import DTYPES, Trace, large, replay


def build(spec: Spec, described: Model, entry: dict[str, Any]) -> nn.Module:
    """The model with DeepSpeed's layer in the place of each block's experts."""
    training = spec.training
    settings = AutoConfig.for_model(**entry, use_cache=False)
    model = AutoModelForCausalLM.from_config(
        settings, dtype=DTYPES[training.precision], attn_implementation=training.attention
    )
    for block, place in zip(model.model.layers, described.blocks, strict=True):
        if isinstance(place.layer.mlp, Moe):
            block.mlp = DeepSpeedExperts(
                place.layer,
                described.hidden_size,
                ep=spec.layout.ep,
                rules=spec.deepspeed.moe,
                dtype=DTYPES[training.precision],
            )
    if training.recompute == "full":
        model.gradient_checkpointing_enable()
    return model.train()


def batch(spec: Spec, described: Model) -> dict[str, Any]:
    """Token ids that are their own labels."""
    training = spec.training
    shape = (training.micro_batch_size, training.sequence_length)
    tokens = torch.randint(0, described.vocab_size, shape)
    return {"input_ids": tokens, "labels": tokens.clone()}


def trace(spec: Spec, described: Model, model: nn.Module) -> dict[str, Any]:
    """Every allocation of a second pass, and what the tapes say of it."""
    for module in model.modules():
        if hasattr(module, "set_deepspeed_parallelism"):
            module.set_deepspeed_parallelism()
    for _ in range(2):
        model.zero_grad()
        inputs = batch(spec, described)
        recorder = Trace([*model.parameters(), *model.buffers(), *inputs.values()])
        with recorder:
            output = model(**inputs)
            output.loss.backward()
    training = replace(spec.training, expert_imbalance=imbalance(model))
    layers = tuple(entry.layer for entry in described.placed())
    passes = [
        run_once(
            layer,
            model=described,
            training=training,
            layout=spec.layout,
            deepspeed=spec.deepspeed,
            tied_head=tied,
            boundary=boundary,
            backend="cpu",
            in_place=False,
        )
        for layer, tied, boundary in placed(layers, tied=described.tied)
    ]
    return {"real": large(recorder.allocations, 0), "ours": large(replay(passes), 0)}


def imbalance(model: nn.Module) -> float:
    """Tokens of the fullest expert in the last pass over the mean."""
    layer = next(module for module in model.modules() if isinstance(module, DeepSpeedExperts))
    counts = layer.moe.deepspeed_moe.exp_counts
    fullest = float(counts.max()) - 0.5  # between two whole numbers, so that rounding is no matter
    return max(1.0, fullest * len(counts) / float(counts.sum()))


def train(spec: Spec, described: Model, model: nn.Module, ledger: Ledger, steps: int) -> None:
    """Some steps of a plain loop."""
    phase = ledger.books.phase
    with phase("init"):
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=split_params_into_different_moe_groups_for_optimizer(
                {"params": list(model.parameters()), "name": "all"}
            ),
            optimizer=lambda groups: make_optimizer(groups, spec.training),
            config=config(
                training=spec.training,
                layout=spec.layout,
                deepspeed=spec.deepspeed,
                micro_steps=spec.micro_steps,
            )
            | {"zero_allow_untested_optimizer": True},
        )
        del model
    for step in range(steps):
        for _ in range(spec.micro_steps):
            with phase(f"{step}.forward"):
                inputs = batch(spec, described)
                output = engine(**inputs)
                loss = output.loss
            with phase(f"{step}.backward"):
                engine.backward(loss)
            with phase(f"{step}.step"):
                engine.step()
    del inputs
    engine.destroy()


def names(model: nn.Module) -> dict[str, Any]:
    """Registered parameters: name, elements, whether an expert's."""
    return {
        "parameters": [
            (name, value.numel(), not getattr(value, "allreduce", True))
            for name, value in model.named_parameters()
        ]
    }


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One file: its parameters, its allocations or its phases."""
    spec = load(Path(case["file"]))
    described = load_model(spec.model, folder=Path(case["file"]).parent)
    torch.manual_seed(0)
    if case["what"] == "trace":
        model = build(spec, described, case["entry"])
        return names(model) | trace(spec, described, model)
    with Ledger() as ledger:
        train(spec, described, build(spec, described, case["entry"]), ledger, case["steps"])
    return {"readings": [reading._asdict() for reading in ledger.books.readings]}


def main() -> None:
    """Run the cases one after the other."""
    torch.distributed.init_process_group(
        "fake",
        store=FakeStore(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    deepspeed.init_distributed("fake")
    gc.freeze()  # readings collect garbage: what the imports made need not be seen
    results = []
    for case in json.loads(sys.argv[1]):
        results.append(run(case))
        gc.collect()
        gc.freeze()
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
