"""``adapters:`` of a file on a model: which modules it means, and how an engine keeps them."""

from collections.abc import Iterable

from planner.errors import ModelError
from planner.model.adapters import Tuning, can_adapt, module_of, tuned
from planner.model.description import Model, Parameter, Storage
from planner.spec.adapters import ALL_LINEAR, Adapters
from planner.spec.frameworks import Framework


def with_adapters(model: Model, framework: Framework) -> Model:
    """The model as `adapters` leaves it; the same where there are none.

    Raises:
        ModelError: modules that the model has not, told as ``adapters.KEY: ...``.

    """
    told = framework.adapters
    if told is None:
        return model
    parameters = [p for placed in model.placed() for p in placed.layer.parameters]
    linears = _modules(filter(can_adapt, parameters))
    heads = _modules(p for p in parameters if p.component == "head")
    if ALL_LINEAR in told.target_modules:
        targets = linears - heads
    else:
        targets = _known("target_modules", told.target_modules, linears)
    tuning = Tuning(
        rank=told.r,
        modules=targets,
        saved=_known("modules_to_save", told.modules_to_save, _modules(parameters)),
        base="model" if told.quantized == "none" else told.quantized,
        adapters=_stored(told, framework),
        dropout=told.lora_dropout,
    )
    return tuned(model, tuning)


def _modules(parameters: Iterable[Parameter]) -> frozenset[str]:
    return frozenset(map(module_of, parameters)) - {""}


def _known(key: str, names: Iterable[str], known: frozenset[str]) -> frozenset[str]:
    unknown = sorted(set(names) - known)
    if unknown:
        message = f"adapters.{key}: the model has no module {', '.join(unknown)} for them"
        raise ModelError(f"{message}; choose from {', '.join(sorted(known))}")
    return frozenset(names)


def _stored(told: Adapters, framework: Framework) -> Storage:
    """Peft makes adapters fp32; an engine that casts the model casts them, too."""
    casts = framework.engine == "deepspeed" or framework.fsdp.mixed_precision
    if framework.engine != "ddp" and casts:
        return "model"
    return "fp32_autocast" if told.autocast else "fp32"
