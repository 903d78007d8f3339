"""The modules that own parameters, and how a layer's inventory becomes a tree of them.

A parameter ``self_attn.q_proj.weight`` is the ``weight`` of a leaf ``q_proj`` in a folder
``self_attn``: names and their order are those of the inventory, shapes those of this rank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from planner.model.description import Layer, Parameter, Placed
from planner.model.description import Norm as NormFacts
from planner.model.modules import attention_norms, ends_branch, experts_folder, is_turned, owner
from planner.validate.reference.parallel import embed_over_ranks, sum_over_ranks
from planner.validate.reference.setting import Setting, Shape, TensorGroup

EPSILON = 1e-6
DEVIATION = 0.02
"""Of random weights."""


class Leaf(nn.Module):
    """Owns ``weight`` and perhaps ``bias``; makes them in the training's dtype."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, shapes: Mapping[str, Shape], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        for name, shape in shapes.items():
            value = torch.empty(shape, dtype=dtype)
            if len(shape) > 1:
                value.normal_(std=DEVIATION)
            else:
                value.fill_(float(name == "weight"))
            self.register_parameter(name, nn.Parameter(value))


class Linear(Leaf):
    """A matrix product; one that is cut by rows ends with a sum over the ranks."""

    def __init__(self, shapes: Mapping[str, Shape], dtype: torch.dtype, *, turned: bool) -> None:
        super().__init__(shapes, dtype)
        self.turned = turned
        """The weight is (in, out): GPT-2's."""
        self.tensor: TensorGroup | None = None
        """Of one that is cut by rows."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out); the bias of a summed one is added once, after the sum."""
        assert self.weight is not None
        weight = self.weight.t() if self.turned else self.weight
        if self.tensor is None:
            return functional.linear(x, weight, self.bias)
        product = sum_over_ranks(functional.linear(x, weight), self.tensor)
        return product if self.bias is None else product + self.bias


class Embedding(Leaf):
    """Rows of a table; of one that is cut by rows, summed over the ranks."""

    tensor: TensorGroup | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) to (B, S, H)."""
        if self.tensor is None:
            return functional.embedding(tokens, self.weight)
        return embed_over_ranks(self.weight, tokens, self.tensor)


class Norm(Leaf):
    """A layer norm, or one of the RMS norms of `planner.model.description.Norm`."""

    def __init__(self, shapes: Mapping[str, Shape], dtype: torch.dtype, *, kind: NormFacts) -> None:
        super().__init__(shapes, dtype)
        self.kind = kind.kind

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dim."""
        match self.kind:
            case "layer":
                size = x.shape[-1:]
                return functional.layer_norm(x, size, self.weight, self.bias, EPSILON)
            case "rms":
                return _rms(x, self.weight)
            case "rms_fp32":
                return _rms_fp32(x, self.weight)
            case _:
                return _rms_one_plus(x, self.weight)


def _rms(x: Tensor, weight: Tensor | None) -> Tensor:
    dtype = x.dtype
    x = x.float()
    variance = x.pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + EPSILON)
    return x.to(dtype) if weight is None else weight * x.to(dtype)


def _rms_fp32(x: Tensor, weight: Tensor) -> Tensor:
    dtype = x.dtype
    x = x.float()
    variance = x.pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + EPSILON)
    return (weight * x).to(dtype)


def _rms_one_plus(x: Tensor, weight: Tensor) -> Tensor:
    output = _normed(x.float())
    output = output * (weight.float() + 1)
    return output.to(x.dtype)


def _normed(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON)


class Folder(nn.Module):
    """Holds modules by name and does nothing else."""


def folder(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, made where it is missing."""
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            root.add_module(name, Folder())
        root = root.get_submodule(name)
    return root


def plant(root: nn.Module, placed: Placed, setting: Setting) -> None:
    """Register the layer's parameters on ``root``, in the order of the inventory.

    The experts of a `Moe`, their router and what is shared, are one module of the seam's.
    """
    experts = experts_folder(placed.layer)
    for path, owned in _by_module(placed).items():
        if experts and path.partition(".")[0] == experts:
            if experts not in root._modules:
                root.add_module(experts, setting.make_experts(placed, setting))
            continue
        parent, _, name = path.rpartition(".")
        folder(root, parent).add_module(name, _leaf(owned, placed, setting))


def _by_module(placed: Placed) -> dict[str, dict[str, Parameter]]:
    """Parameters by the module that owns them."""
    modules: dict[str, dict[str, Parameter]] = {}
    for parameter in placed.layer.parameters:
        path, _, name = parameter.name.rpartition(".")
        modules.setdefault(path, {})[name] = parameter
    return modules


def _leaf(owned: Mapping[str, Parameter], placed: Placed, setting: Setting) -> Leaf:
    shapes = {name: setting.shape(placed, parameter) for name, parameter in owned.items()}
    leaf = _made(owned, shapes, placed, setting)
    for name, parameter in owned.items():
        # DeepSpeed's gradient norm counts whole parameters on the group's first rank only.
        leaf.get_parameter(name).model_parallel = parameter.tp_dim is not None
    return leaf


def _made(
    owned: Mapping[str, Parameter], shapes: Mapping[str, Shape], placed: Placed, setting: Setting
) -> Leaf:
    matrix, dtype = owned["weight"], setting.dtype
    if matrix.component == "norm":
        return Norm(shapes, dtype, kind=_norm_of(matrix, placed.layer))
    cut = setting.tensor.size > 1 and matrix.tp_dim is not None
    if matrix.component == "embedding":
        made = Embedding(shapes, dtype)
        made.tensor = setting.tensor if cut else None
        return made
    linear = Linear(shapes, dtype, turned=is_turned(placed.layer, matrix))
    linear.tensor = setting.tensor if cut and ends_branch(placed.layer, matrix) else None
    return linear


def _norm_of(weight: Parameter, layer: Layer) -> NormFacts:
    """Queries and keys may have a norm of another kind."""
    inside = owner(weight) in attention_norms(layer)
    if inside and layer.attention is not None and layer.attention.qk_norm is not None:
        return layer.attention.qk_norm
    assert layer.norm is not None
    return layer.norm


def tied_linear(embedding: nn.Module) -> Linear:
    """A head that multiplies by an embedding's weight, which it shares."""
    linear = Linear({}, torch.float32, turned=False)
    linear.weight = embedding.weight
    return linear
