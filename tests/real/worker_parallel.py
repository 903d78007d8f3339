"""A transformers model as one of several ranks that do not exist, traced allocation by allocation.

Process groups are torch's fake ones: collectives do nothing, so only sizes are of interest.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.real.activations_measure import SEQUENCES, TOKENS, VOCABULARY, Setting, Trace, build


def main() -> None:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    case = json.loads(sys.argv[1])
    os.environ["WORLD_SIZE"] = str(case["ranks"])
    dist.init_process_group("fake", rank=0, world_size=case["ranks"], store=FakeStore())

    import deepspeed

    deepspeed.init_distributed()
    real = build(case["model"], Setting())
    step = _autotp if case["axis"] == "tp" else _ulysses
    Path(sys.argv[2]).write_text(json.dumps(step(real, case["ranks"])))


def _autotp(real: Any, ranks: int) -> list[tuple[int, int]]:
    """A step of what AutoTP makes of the model."""
    import deepspeed
    from deepspeed.sequence import cross_entropy

    # Ranks that do not exist cannot say where their part of the vocabulary begins.
    cross_entropy._resolve_vocab_metadata = lambda local, *_: (0, local, ranks * local)
    config = {
        "train_micro_batch_size_per_gpu": SEQUENCES,
        "tensor_parallel": {"autotp_size": ranks},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=real, config=config)
    model = engine.module.train()
    # The hook that compares the batch between ranks would find that it differs.
    model._forward_pre_hooks.clear()
    for parameter in model.parameters():
        parameter.grad = None
    ids = torch.randint(0, VOCABULARY, (SEQUENCES, TOKENS))
    trace = Trace([*model.parameters(), *model.buffers(), ids])
    with trace:
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
    return trace.allocations


def _ulysses(real: Any, ranks: int) -> list[tuple[int, int]]:
    """A step with DeepSpeed's sequence parallelism around attention."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=real,
        core_attn_implementation="sdpa",
        sequence_parallel_size=ranks,
        micro_batch_size=SEQUENCES,
        seq_length=TOKENS,
    )
    own = TOKENS // ranks
    ids = torch.randint(0, VOCABULARY, (SEQUENCES, own))
    labels = ids.clone()
    places = torch.arange(own).expand(SEQUENCES, own).contiguous()
    trace = Trace([*real.parameters(), *real.buffers(), ids, labels, places])
    with trace:
        output = real(input_ids=ids, position_ids=places)
        loss = real.loss_function(
            logits=output.logits, labels=None, shift_labels=labels, vocab_size=VOCABULARY
        )
        loss.backward()
    return trace.allocations


main()
