"""SigLIP's image tower, as far as its parameters go.

Source: transformers 5.23 models/siglip/modeling_siglip.py, configuration_siglip.py:93-103.
"""

from planner.model import parts
from planner.model.keys import MAX_LAYERS, Keys


def vision_tower(keys: Keys, prefix: str) -> parts.Parameters:
    """Patches and positions, the blocks, the last norm; a pooling head is refused."""
    images = keys.group("vision_config") or Keys(
        data={}, where=keys.where, name=keys.name, faults=keys.faults
    )
    hidden = images.size("hidden_size", default=768)
    width = images.size("intermediate_size", default=3072)
    patch = images.size("patch_size", default=16)
    image = images.size("image_size", default=224)
    layers = images.size("num_hidden_layers", default=12, largest=MAX_LAYERS)
    if images.flag("vision_use_head", default=True):
        images.only("vision_use_head", allowed=False, why="a tower without its pooling head is")
    channels = images.size("num_channels", default=3)
    block = _block(hidden, width)
    return parts.join(
        (
            (
                parts.vision(
                    f"{prefix}embeddings.patch_embedding.weight", hidden, channels, patch, patch
                ),
                parts.vision(f"{prefix}embeddings.patch_embedding.bias", hidden),
                parts.vision(
                    f"{prefix}embeddings.position_embedding.weight", (image // patch) ** 2, hidden
                ),
            ),
            *(
                tuple(
                    parts.vision(f"{prefix}encoder.layers.{index}.{name}", *shape)
                    for name, shape in block
                )
                for index in range(layers)
            ),
            (
                parts.vision(f"{prefix}post_layernorm.weight", hidden),
                parts.vision(f"{prefix}post_layernorm.bias", hidden),
            ),
        )
    )


def _block(hidden: int, width: int) -> list[tuple[str, tuple[int, ...]]]:
    square, vector = (hidden, hidden), (hidden,)
    weights = {
        "layer_norm1": vector,
        **{f"self_attn.{name}": square for name in ("k_proj", "v_proj", "q_proj", "out_proj")},
        "layer_norm2": vector,
        "mlp.fc1": (width, hidden),
        "mlp.fc2": (hidden, width),
    }
    return [
        entry
        for name, shape in weights.items()
        for entry in ((f"{name}.weight", shape), (f"{name}.bias", shape[:1]))
    ]
