"""Ulysses around the attention of transformers' models, as DeepSpeed's documentation does it."""

from typing import Any

import torch

from planner.errors import LaunchError
from planner.spec.load import Spec


def share_attention(model: Any, spec: Spec) -> Any:
    """Put DeepSpeed's attention in the place of the model's, for the rest of the process.

    Returns what tells DeepSpeed's engine who shares a sequence. LaunchError where the installed
    release has no such attention, as 0.16.9.
    """
    try:
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
    except ImportError:
        message = f"{spec.at('layout')}: this DeepSpeed has no Ulysses for transformers' models"
        raise LaunchError(f"{message}; install a later release, or take sp: 1") from None
    training = spec.training
    return UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=model,
        core_attn_implementation=training.attention,
        sequence_parallel_size=spec.fixed_layout.sp,
        micro_batch_size=training.micro_batch_size,
        seq_length=training.sequence_length,
    )


def share(tokens: torch.Tensor, *, rank: int, size: int) -> dict[str, torch.Tensor]:
    """Of a batch (B, S) what the sequence's ``rank`` of ``size`` is given, positions included.

    transformers' loss takes labels that are shifted already as ``shift_labels``, but computes none
    without ``labels``.
    """
    length = tokens.shape[1] // size
    own = tokens[:, rank * length : (rank + 1) * length].clone()
    places = torch.arange(rank * length, (rank + 1) * length, device=tokens.device)
    labels = own.clone()
    return {
        "input_ids": own,
        "position_ids": places.expand(own.shape).contiguous(),
        "labels": labels,
        "shift_labels": labels,
    }
