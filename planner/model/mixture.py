"""Reading the experts of a configuration, and which blocks have them."""

from planner.model.keys import Keys


def top_k(keys: Keys, num_experts: int, *, default: int | None = None) -> int:
    """Experts of a token; not more than there are."""
    chosen = keys.size("num_experts_per_tok", "experts_per_token", default=default)
    keys.at_most(chosen, num_experts, names=("num_experts_per_tok", "the number of experts"))
    return chosen


def sparse_blocks(keys: Keys, layers: int) -> tuple[bool, ...]:
    """Tell for every block of Qwen2-MoE and Qwen3-MoE whether it has experts.

    Source: modeling_qwen3_moe.py:308: not in ``mlp_only_layers``, every ``decoder_sparse_step``-th.
    """
    step = keys.size("decoder_sparse_step", default=1)
    dense = keys.indices("mlp_only_layers", below=layers)
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(layers))


def dense_first(keys: Keys, layers: int, *, default: int) -> tuple[bool, ...]:
    """Tell for every block of DeepSeek and GLM-4.5 whether it has experts."""
    dense = keys.count("first_k_dense_replace", default=default)
    return tuple(index >= dense for index in range(layers))


def expert_groups(
    keys: Keys, num_experts: int, *, default: tuple[int, int], per_token: int
) -> tuple[int, int]:
    """Groups of experts and how many of them a token may choose from.

    A router with groups reshapes its scores to [groups, E / groups] and takes the two best of
    each (modeling_deepseek_v3.py:139), so groups must divide the experts evenly.
    """
    groups = keys.size("n_group", default=default[0])
    chosen = keys.size("topk_group", default=default[1])
    keys.divides(groups, num_experts, names=("n_group", "the number of experts"))
    keys.at_most(chosen, groups, names=("topk_group", "n_group"))
    if not keys.faulty.intersection(("n_group", "topk_group")):
        names = ("num_experts_per_tok", "the experts of the chosen groups")
        keys.at_most(per_token, num_experts // groups * chosen, names=names)
    return groups, chosen
