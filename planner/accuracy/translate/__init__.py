"""From an entry to a plan's input, framework by framework."""

from collections.abc import Callable, Mapping

from planner.accuracy.case import Case, UnsupportedError
from planner.accuracy.entries import Entry
from planner.accuracy.translate import deepspeed, fsdp, megatron, single

_TRANSLATORS: Mapping[str, Callable[[Entry], Case]] = {
    "DeepSpeed": deepspeed.translate,
    "HF Accelerate FSDP1": fsdp.translate,
    "HF Trainer": single.translate,
    "HF Trainer (ms-swift 1.x)": single.translate,
    "HF Trainer + FSDP1": fsdp.translate,
    "Megatron-Bridge": megatron.translate,
    "Megatron-DeepSpeed": deepspeed.translate,
    "Megatron-LM": megatron.translate,
    "PyTorch DDP": single.translate,
    "PyTorch DDP (Lightning)": single.translate,
    "PyTorch FSDP1": fsdp.translate,
    "PyTorch FSDP1 (ATorch)": fsdp.translate,
    "PyTorch FSDP2": fsdp.translate,
    "PyTorch single GPU": single.translate,
    "TRL (FSDP2 + context parallel)": fsdp.translate,
    "litgpt (Lightning Fabric)": single.translate,
    "llm-foundry (Composer FSDP1)": fsdp.translate,
    "ms-swift (Megatron)": megatron.translate,
    "torchtitan": fsdp.translate,
}


def translate(entry: Entry) -> Case:
    """Turn an entry into a case.

    Raises:
        PlannerError: it cannot be planned; the message says why.

    """
    translator = _TRANSLATORS.get(entry.framework)
    if entry.parallel.get("zero_impl") == "DDP local":
        # Megatron-LM's own, also where its fork for DeepSpeed ran without DeepSpeed.
        translator = megatron.translate
    if translator is None:
        raise UnsupportedError(f"framework {entry.framework} is not modelled")
    return translator(entry)
