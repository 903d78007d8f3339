"""How the model is trained."""

from dataclasses import dataclass
from typing import Annotated, Literal

from planner.spec.fields import Bounds, Count, Share, Tokens

Precision = Literal["fp32", "fp16", "bf16"]
OptimizerName = Literal[
    "adamw", "sgd", "lion", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"
]
OptimizerKernel = Literal["fused", "foreach", "loop"]
Recompute = Literal["none", "selective", "full"]
ActivationCode = Literal["hf", "megatron", "reference"]
AttentionKernel = Literal["eager", "sdpa", "flash"]
LossKernel = Literal["eager", "fused", "chunked", "in_place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One optimizer step, as far as memory sees it."""

    sequence_length: Tokens
    micro_batch_size: Count = 1
    """Sequences per device and micro-step."""
    global_batch_size: Count | None = None
    """Sequences per optimizer step over all devices; None: one micro-step per step."""
    precision: Precision = "bf16"
    optimizer: OptimizerName = "adamw"
    optimizer_kernel: OptimizerKernel = "fused"
    """fused: one kernel without temporaries (DeepSpeed's FusedAdam, torch fused=True); foreach and
    loop: torch's own implementations with their temporaries."""
    momentum: Share = 0.9
    """Of SGD; 0 keeps no state."""
    parameter_groups: Literal["one", "weight_decay"] = "one"
    """weight_decay: biases and norms in a group of their own, as Hugging Face's Trainer makes."""
    recompute: Recompute = "none"
    implementation: ActivationCode = "hf"
    """Whose layers run. hf: transformers' (tensor parallelism: AutoTP); megatron: Megatron-LM's
    fused kernels; reference: the planner's own plain ones, which `planner validate` trains where
    transformers' code cannot run: in pipelines, with selective recomputation, cut by hand."""
    sequence_parallel: bool = False
    """Megatron's: between its branches a layer's tokens are cut over the tensor-parallel ranks."""
    attention: AttentionKernel = "sdpa"
    loss: LossKernel = "eager"
    """fused, chunked: never all logits at once; in_place: their fp32 gradient lies over them."""
    loss_chunks: Count = 8
    """Pieces of the sequence for ``loss: chunked``."""
    keep_logits: bool = True
    """The training loop holds the model's output, logits included, until the step is over."""
    dropout: bool = True
    """Apply the dropout probabilities of the model's configuration."""
    expert_imbalance: Annotated[float, Bounds(least=1.0, most=1e6)] = 1.0
    """Tokens of the fullest expert rank over the mean."""
