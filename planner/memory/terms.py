"""The names of memory: every byte of a rank belongs to exactly one term."""

from enum import IntEnum, auto


class Term(IntEnum):
    """One named piece of memory; the value is its column in the timeline."""

    WEIGHTS = 0
    """Parameters in the model's dtype, or a rank's ZeRO-3 partition of them."""
    GATHERED_WEIGHTS = auto()
    """ZeRO-3: whole parameters gathered for use, with the buffers of the gathering."""
    GRADIENTS = auto()
    """Gradients as autograd leaves them, not yet reduced to their owner."""
    OWNED_GRADIENTS = auto()
    """Reduced gradients that the rank keeps for its own partition."""
    MASTER_WEIGHTS = auto()
    """fp32 copies of the weights that the optimizer updates."""
    OPTIMIZER_STATES = auto()
    """Moments and whatever else the optimizer keeps per parameter."""
    BUCKETS = auto()
    """Flat buffers in which gradients are collected before they are reduced."""
    REDUCE_COPIES = auto()
    """Copies made while a bucket is reduced."""
    ACTIVATIONS = auto()
    """What autograd saves in the forward pass for the backward pass."""
    LOGITS = auto()
    """The head's output and the loss's copies of it."""
    PIPELINE_BUFFERS = auto()
    """What a pipeline stage holds to receive and send activations and their gradients."""
    TRANSIENT = auto()
    """Results of operations that live for less than a layer: outputs, gradients of activations."""
    STEP_COPIES = auto()
    """Temporaries of the optimizer step: norm, casts, the optimizer's own."""
    INIT_COPIES = auto()
    """Temporaries of the initialisation."""
    WORKSPACES = auto()
    """cuBLAS workspaces, which PyTorch takes from its own allocator."""

    @property
    def label(self) -> str:
        """The name in JSON documents and tables."""
        return self.name.lower()
