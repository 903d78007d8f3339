"""A stored inventory: all parameters of a model that transformers built once, as a JSON file.

``planner.inventory/1`` has ``name``, ``model_type``, ``implementation``, ``hidden_size``,
``vocab_size``, ``max_positions``, ``tied``, ``experts_per_token`` (null: not known) and:

    layers      [[PARAMETER, ...], ...]       every different layer once
    blocks      [[prefix, layer], ...]        in the order of ``named_parameters()``
    tail        [[prefix, layer], ...]
    stem        [prefix, layer]

where ``layer`` counts ``layers`` from 0 and PARAMETER is ``{name, shape, component}`` with
``tp_dim`` and ``routed`` where they say more than nothing. What the layers compute is not known.
"""

from collections.abc import Mapping
from typing import Any

from planner.model.counts import COMPONENTS
from planner.model.description import Layer, Model, Parameter, Placed
from planner.model.faults import fault
from planner.model.keys import MAX_SIZE, show

SCHEMA = "planner.inventory/1"


def is_inventory(data: Mapping[str, Any]) -> bool:
    """Tell a stored inventory from a configuration."""
    schema = data.get("schema")
    return isinstance(schema, str) and schema.startswith("planner.inventory/")


def to_document(model: Model) -> dict[str, Any]:
    """Return the document that `from_document` reads; each different layer stands there once."""
    different = list(dict.fromkeys(placed.layer for placed in model.placed()))
    number = {layer: index for index, layer in enumerate(different)}

    def place(placed: Placed) -> list[Any]:
        return [placed.prefix, number[placed.layer]]

    return {
        "schema": SCHEMA,
        "name": model.name,
        "model_type": model.family,
        "implementation": model.implementation,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "max_positions": model.max_positions,
        "tied": model.tied,
        "experts_per_token": model.experts_per_token,
        "stem": place(model.stem),
        "blocks": [place(placed) for placed in model.blocks],
        "tail": [place(placed) for placed in model.tail],
        "layers": [[_stored(parameter) for parameter in layer.parameters] for layer in different],
    }


def from_document(data: Mapping[str, Any], *, where: str) -> Model:
    """Return the model; `ConfigError` for a document that is not as described above."""
    if data.get("schema") != SCHEMA:
        raise fault(where, f"{show(data.get('schema'))} is not {SCHEMA}; import the model again",
                    key="schema")  # fmt: skip
    try:
        return _model(data)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise fault(
            where, f"is not a whole inventory ({type(error).__name__}: {error}); import it again"
        ) from None


def _model(data: Mapping[str, Any]) -> Model:
    layers = [_parameters(items) for items in _list(data["layers"])]
    made: dict[tuple[str, int], Layer] = {}

    def place(item: Any, kind: Any) -> Placed:
        prefix, index = item
        if not isinstance(index, int) or index < 0:
            raise ValueError(f"{show(index)} is not the number of a layer")
        key = kind, index
        if key not in made:
            made[key] = Layer(kind=kind, parameters=layers[index])
        return Placed(prefix=_text(prefix), layer=made[key])

    return Model(
        name=_text(data["name"]),
        family=_text(data["model_type"]),
        implementation=_text(data["implementation"]),
        hidden_size=_size(data["hidden_size"]),
        vocab_size=_size(data["vocab_size"]),
        max_positions=_size(data["max_positions"]),
        tied=data["tied"] is True,
        stem=place(data["stem"], "stem"),
        blocks=tuple(place(item, "block") for item in _list(data["blocks"])),
        tail=tuple(place(item, "head") for item in _list(data["tail"])),
        inventory_only=True,
        experts_per_token=_optional_size(data.get("experts_per_token")),
    )


def _parameters(items: Any) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            name=_text(item["name"]),
            shape=tuple(_size(size) for size in _list(item["shape"])),
            component=_component(item["component"]),
            tp_dim=_dim(item.get("tp_dim"), len(item["shape"])),
            routed=item.get("routed", False) is True,
        )
        for item in _list(items)
    )


def _stored(parameter: Parameter) -> dict[str, Any]:
    stored: dict[str, Any] = {
        "name": parameter.name,
        "shape": list(parameter.shape),
        "component": parameter.component,
    }
    if parameter.tp_dim is not None:
        stored["tp_dim"] = parameter.tp_dim
    if parameter.routed:
        stored["routed"] = True
    return stored


def _component(value: Any) -> Any:
    if value not in COMPONENTS:
        raise ValueError(f"{show(value)} is not a component")
    return value


def _dim(value: Any, num_dims: int) -> int | None:
    if value is not None and not (type(value) is int and 0 <= value < num_dims):
        raise ValueError(f"tp_dim {show(value)} is not a dim of the tensor")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise ValueError(f"{show(value)} is not a size")
    return value


def _optional_size(value: Any) -> int | None:
    return None if value is None else max(1, _size(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{show(value)} is not a text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{show(value)} is not a list")
    return value
