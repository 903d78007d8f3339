"""GPT-2's layers with fewer key and value heads, which no configuration of that family can say."""

from dataclasses import replace

from planner.model.description import Layer, Model, Parameter, Placed


def with_groups(model: Model, num_kv_heads: int) -> Model:
    """The model with so many key and value heads in each block's fused projection."""
    made: dict[int, Layer] = {}
    blocks = []
    for placed in model.blocks:
        key = id(placed.layer)
        if key not in made:
            made[key] = _layer(placed.layer, num_kv_heads)
        blocks.append(Placed(prefix=placed.prefix, layer=made[key]))
    return replace(model, name=f"{model.name} with groups", blocks=tuple(blocks))


def _layer(layer: Layer, num_kv_heads: int) -> Layer:
    assert layer.attention is not None
    attention = replace(layer.attention, num_kv_heads=num_kv_heads)
    width = (attention.num_heads + 2 * num_kv_heads) * attention.head_size
    parameters = tuple(_parameter(parameter, width) for parameter in layer.parameters)
    return replace(layer, attention=attention, parameters=parameters)


def _parameter(parameter: Parameter, width: int) -> Parameter:
    if parameter.component != "attention.qkv" or parameter.tp_dim is None:
        return parameter
    shape = list(parameter.shape)
    shape[parameter.tp_dim] = width
    return replace(parameter, shape=tuple(shape))
