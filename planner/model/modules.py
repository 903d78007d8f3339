"""Which modules of a layer own what, by the names of its parameters.

For code that runs any family's layers alike: the reference transformer and its twin on paper.
"""

from planner.model.description import Layer, Parameter

USED_AT = {"input_layernorm": 0, "post_self_attn_layernorm": 1, "post_attention_layernorm": 2,
           "pre_feedforward_layernorm": 3, "post_feedforward_layernorm": 4,
           "post_mlp_layernorm": 4}  # fmt: skip
"""Norms whose order of use is not that of registration: GLM-4-0414's and Falcon's."""

MATRIX = 2


def matrices(layer: Layer, component: str) -> list[Parameter]:
    """The layer's matrices of a component, in order."""
    return [
        parameter
        for parameter in layer.parameters
        if parameter.component == component and len(parameter.shape) == MATRIX
    ]


def owner(parameter: Parameter) -> str:
    """Name of the module that owns a parameter."""
    return parameter.name.rpartition(".")[0]


def hidden_norms(layer: Layer) -> list[str]:
    """Modules that normalise hidden states, in the order of use."""
    names = _norms(layer, inside=False)
    return sorted(names, key=lambda name: USED_AT.get(name, 1))


def attention_norms(layer: Layer) -> list[str]:
    """Modules that normalise inside attention: of queries and keys, or of latent projections."""
    return _norms(layer, inside=True)


def experts_folder(layer: Layer) -> str:
    """The module that holds router and experts; "" without any."""
    return next((p.name.partition(".")[0] for p in layer.parameters if p.routed), "")


def ends_branch(layer: Layer, matrix: Parameter) -> bool:
    """The last product of attention or MLP, which tensor parallelism cuts by its inputs."""
    if matrix.component == "attention.o":
        return True
    return matrix.component == "mlp" and matrix == matrices(layer, "mlp")[-1]


def is_turned(layer: Layer, matrix: Parameter) -> bool:
    """The weight is (in, out): GPT-2's."""
    return matrix.tp_dim == (0 if ends_branch(layer, matrix) else 1)


def _norms(layer: Layer, *, inside: bool) -> list[str]:
    folder = next((p.name.partition(".")[0] for p in matrices(layer, "attention.o")), None)
    return [
        owner(parameter)
        for parameter in layer.parameters
        if parameter.component == "norm"
        and parameter.name.endswith(".weight")
        and (parameter.name.partition(".")[0] == folder) == inside
    ]
