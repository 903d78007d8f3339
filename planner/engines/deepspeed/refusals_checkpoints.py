"""What DeepSpeed refuses of activation checkpoints, and what cannot be counted of them.

Line numbers are of runtime/activation_checkpointing/checkpointing.py of DeepSpeed 0.19.8.
"""

from collections.abc import Iterator

from planner.activations.programs.keeping import checkpoints_by_function
from planner.engines.deepspeed.refusal import Case, Refusal, Rule

_KEY = "deepspeed.activation_checkpointing"
_FILE = "runtime/activation_checkpointing/checkpointing.py"


def _contiguous(case: Case) -> Iterator[Refusal]:
    keys = case.deepspeed.activation_checkpointing
    if not _active(case) or not keys.contiguous_memory_optimization:
        return
    key = f"{_KEY}.contiguous_memory_optimization"
    if not keys.partition_activations:
        fault = "contiguous checkpoints must be partitioned"
        yield Refusal(key, fault, f"{_FILE}:1229", "set partition_activations: true as well")
    blocks = len(case.model.blocks)
    if keys.number_checkpoints is None:
        yield Refusal(
            key,
            "the number of checkpoints must be told",
            f"{_FILE}:1231",
            f"set number_checkpoints: {blocks}",
        )
    elif case.layout.pp == 1 and keys.number_checkpoints < blocks:
        yield Refusal(
            f"{_KEY}.number_checkpoints",
            f"{keys.number_checkpoints} is less than the {blocks} checkpoints of a forward pass",
            f"{_FILE}:428",
            f"write {blocks}",
        )
    if case.layout.pp > 1:
        yield Refusal(
            key,
            "rooms for checkpoints that several micro-batches share are not modelled yet",
            "",
            "leave it out: it saves no bytes",
        )


def _on_host(case: Case) -> Iterator[Refusal]:
    keys = case.deepspeed.activation_checkpointing
    if not _active(case) or not keys.cpu_checkpointing or keys.partition_activations:
        return
    key = f"{_KEY}.cpu_checkpointing"
    if case.cluster.device.architecture == "cpu":
        yield Refusal(
            key,
            "on CPU ranks the copy is the input itself, which is emptied, and backward fails",
            f"{_FILE}:470",
            "leave it out, or set partition_activations: true",
        )
    elif case.layout.pp > 1:
        yield Refusal(
            key,
            "which inputs of several micro-batches are on their way to the host is not modelled "
            "yet",
            "",
            "set partition_activations: true as well, which copies at once",
        )


def _selective(case: Case) -> Iterator[Refusal]:
    keys = case.deepspeed.activation_checkpointing
    if case.training.recompute == "selective" and (
        keys.partition_activations or keys.cpu_checkpointing
    ):
        yield Refusal(
            _KEY,
            "partitioned or host checkpoints of attention alone are not modelled yet",
            "",
            "use recompute: full, or leave the keys out",
        )


def _active(case: Case) -> bool:
    return checkpoints_by_function(case.training, case.layout)


CHECKPOINT_RULES: tuple[Rule, ...] = (_contiguous, _on_host, _selective)
