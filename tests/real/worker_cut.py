"""One rank of a world that has no other: the shapes that AutoTP and AutoEP leave of small models.

Process groups are torch's fake ones, so collectives do nothing; only shapes are of interest.
"""

import json
import os
import sys
import traceback
from pathlib import Path


def main() -> None:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    case = json.loads(sys.argv[1])
    dist.init_process_group(
        "fake",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        store=FakeStore(),
    )
    Path(sys.argv[2]).write_text(json.dumps([shapes(run) for run in case["runs"]]))


def shapes(run: dict) -> dict:
    """``{"parameters": [[name, shape], ...]}`` or ``{"error": text, "place": file:line}``."""
    import deepspeed
    from deepspeed.utils import groups
    from transformers import AutoConfig, AutoModelForCausalLM

    groups._release_process_group_references()
    config = AutoConfig.for_model(**run["model"])
    model = AutoModelForCausalLM.from_config(config)
    try:
        engine, *_ = deepspeed.initialize(
            model=model,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
                **run["config"],
            },
        )
    except Exception as error:  # noqa: BLE001: whatever DeepSpeed raises is the result
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.rpartition('/deepspeed/')[2]}:{frame.lineno}"
        return {"error": str(error), "place": place}
    return {"parameters": [[n, list(p.shape)] for n, p in engine.module.named_parameters()]}


main()
