"""The model as DeepSpeed's `PipelineModule`: an entry each for stem, blocks, norm and head."""

from typing import Any

from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn
from torch.nn import functional

from planner.layout.cut import layer_classes
from planner.model.description import Placed
from planner.model.modules import matrices, owner
from planner.validate.reference.layers import Head, LossOf
from planner.validate.reference.leaves import Embedding, folder
from planner.validate.reference.parallel import enter_branch
from planner.validate.reference.setting import Setting
from planner.validate.reference.whole import KINDS

TIED = "embedding"
"""Key of the layers that share the token embedding."""


class TiedHead(Head):
    """A head on another stage than the stem: holds a copy of the embedding under the same name."""

    def __init__(self, placed: Placed, setting: Setting) -> None:
        super().__init__(placed, setting)
        stem = setting.model.stem
        weight = matrices(stem.layer, "embedding")[0]
        parent, _, name = owner(weight).rpartition(".")
        copy = Embedding({"weight": setting.shape(stem, weight)}, setting.dtype)
        folder(self, parent).add_module(name, copy)


def staged(setting: Setting, *, partition_method: str) -> PipelineModule:
    """Make this rank's stage; sets the group of the ranks that tensors are cut over."""
    layout, names = setting.layout, layer_classes(setting.model)
    module = PipelineModule(
        list(_specs(setting, names)),
        topology=PipeModelDataParallelTopology(layout.pp, layout.tp, layout.dp * layout.sp),
        loss_fn=LossOf(setting),
        partition_method=partition_method,
        activation_checkpoint_interval=int(setting.training.recompute == "full"),
        checkpointable_layers=[names[1]],
    )
    setting.tensor.group = module._grid.get_slice_parallel_group()
    return module


def _specs(setting: Setting, names: tuple[str, ...]) -> Any:
    for placed, name in zip(setting.model.placed(), names, strict=True):
        # The class's name is what partition_method's type:REGEX searches.
        kind = type(name, (KINDS[placed.layer.kind],), {})
        if setting.model.tied and placed.layer.kind == "stem":
            yield TiedLayerSpec(TIED, kind, placed, setting, tied_weight_attr=_weight(setting))
        elif setting.model.tied and placed.layer.kind == "head":
            kind = type(name, (TiedHead,), {})
            yield TiedLayerSpec(
                TIED,
                kind,
                placed,
                setting,
                forward_fn=_by_embedding,
                tied_weight_attr=_weight(setting),
            )
        else:
            yield LayerSpec(kind, placed, setting)


def _weight(setting: Setting) -> str:
    return matrices(setting.model.stem.layer, "embedding")[0].name


def _by_embedding(module: nn.Module, hidden: Tensor) -> Tensor:
    """Logits by the weight of the stem, or of the copy that a `TiedHead` holds."""
    hidden = enter_branch(hidden, module.setting.tensor)
    weight = module.get_parameter(_weight(module.setting))
    return functional.linear(hidden, weight)
