"""One rank of a world that has no other: what DeepSpeed makes of small models, or says to them.

Process groups are torch's fake ones, so collectives do nothing; only sizes are of interest.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch

OURS = "/site-packages/deepspeed/"


class Mean(torch.nn.Module):
    """The loss of a model that has no other."""

    def forward(self, values):
        return values.mean()


class Experts(torch.nn.Module):
    """DeepSpeed's own MoE layer."""

    def __init__(self, ep: int) -> None:
        super().__init__()
        from deepspeed.moe.layer import MoE

        self.moe = MoE(8, torch.nn.Linear(8, 8), num_experts=4, ep_size=ep)

    def forward(self, values):
        return self.moe(values)[0].mean()


def main() -> None:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    case = json.loads(sys.argv[1])
    os.environ["WORLD_SIZE"] = str(case["world_size"])
    rank = int(os.environ["RANK"])
    dist.init_process_group("fake", rank=rank, world_size=case["world_size"], store=FakeStore())

    import deepspeed

    deepspeed.init_distributed()
    Path(sys.argv[2]).write_text(json.dumps([shapes(run) for run in case["runs"]]))


def shapes(run: dict) -> dict:
    """``parameters``: [name, numel] of each; or ``error``, with the ``places`` it came through."""
    import deepspeed
    from deepspeed.utils import groups

    groups._release_process_group_references()
    try:
        model, told = build(run)
        engine, *_ = deepspeed.initialize(
            model=model,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
                **run["config"],
            },
        )
        if run.get("step"):
            engine.backward(engine(*told))
            engine.step()
    except Exception as error:  # noqa: BLE001
        # Whatever DeepSpeed raises is the result.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if OURS in f.filename]
        places = [f"{frame.filename.rpartition(OURS)[2]}:{frame.lineno}" for frame in frames]
        return {"error": f"{type(error).__name__}: {error}", "places": places}
    return {"parameters": [[n, p.numel()] for n, p in engine.module.named_parameters()]}


def build(run: dict) -> tuple:
    """The model of a run, and an input for it."""
    import torch

    if isinstance(run["model"], dict):
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**run["model"])
        return AutoModelForCausalLM.from_config(config), ()
    told = torch.ones(2, 8)
    if run["model"] == "pipeline":
        from deepspeed.pipe import PipelineModule

        layers = [torch.nn.Linear(8, 8) for _ in range(4)]
        return PipelineModule(layers, num_stages=2, partition_method=run["method"]), (told,)
    if run["model"] == "experts":
        return Experts(run["ep"]), (told,)
    return torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Flatten(0), Mean()), (told,)


main()
