"""Which layouts the closed form knows; the others are walked."""

from planner.activations.programs.keeping import checkpoints_by_function, reenters
from planner.engines.deepspeed.bf16_optimizer import uses_bf16_optimizer
from planner.engines.deepspeed.releases import accumulates_bf16_in_fp32
from planner.engines.deepspeed.stage import Run
from planner.model.description import Model
from planner.spec.deepspeed import ActivationCheckpointing


def is_covered(run: Run) -> bool:
    """Whether the closed form holds for whatever micro-batch of this run."""
    return (
        run.training.optimizer != "muon"
        and _plain_parameters(run.model)
        and _plain_checkpoints(run)
        and _plain_reduction(run)
    )


def _plain_parameters(model: Model) -> bool:
    """All are trained, in the dtype of the model."""
    return all(p.trained and p.stored == "model" for p in model.parameters())


def _plain_checkpoints(run: Run) -> bool:
    """Each keeps its own input, whole, on the device."""
    if not checkpoints_by_function(run.training, run.layout):
        return True
    plain = run.deepspeed.activation_checkpointing == ActivationCheckpointing()
    reentered = reenters(run.layout, run.deepspeed)
    return plain and reentered and not run.deepspeed.pipeline.activation_checkpoint_interval


def _plain_reduction(run: Run) -> bool:
    """Gradients of the model's dtype, through contiguous buckets."""
    zero, stage = run.deepspeed.zero_optimization, run.layout.zero_stage
    if uses_bf16_optimizer(run.training, run.layout, run.deepspeed):
        return True
    same = run.deepspeed.grad_accum_dtype in {None, run.training.precision}
    if stage == 0:
        return same and not (
            run.training.precision == "bf16" and accumulates_bf16_in_fp32(run.deepspeed.version)
        )
    if run.layout.partitions_weights:
        return zero.zero_hpz_partition_size == 1
    plain = zero.contiguous_gradients and zero.reduce_scatter and not zero.round_robin_gradients
    return same and plain
