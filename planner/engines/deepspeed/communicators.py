"""How many communicators DeepSpeed makes a rank take part in: NCCL keeps buffers for each.

On CUDA DeepSpeed binds the device (comm/torch.py:274-281), so that a communicator is made with
its group and not at first use. Lines are of DeepSpeed 0.19.8.
"""

from planner.memory.beyond import Beyond, beyond
from planner.spec.cluster import Device
from planner.spec.layout import Layout


def num_communicators(layout: Layout) -> int:
    """Count the groups of more than one rank that a rank is a member of.

    The default group, always; its copy without other axes (utils/groups.py:723) or with a pipeline;
    with a pipeline the ranks of one replica, the data-parallel ones of the stage and the stages
    (runtime/pipe/topology.py:304-342), with tensor parallelism the slice (359-366 there, or
    AutoTP's mesh, utils/groups.py:202); with Ulysses the sequence and the data axis; with experts
    their group and that of their replicas (utils/groups.py:370).
    """
    sizes = [layout.num_devices]
    if layout.pp > 1 or layout.tp == 1:
        sizes.append(layout.num_devices)
    if layout.pp > 1:
        sizes += [layout.pp * layout.tp, layout.zero_degree, layout.pp]
    elif layout.tp > 1:
        sizes.append(layout.zero_degree)
    if layout.tp > 1:
        sizes.append(layout.tp)
    if layout.sp > 1:
        sizes += [layout.sp, layout.dp]
    if layout.ep > 1:
        sizes += [layout.ep, layout.expert_zero_degree]
    return sum(size > 1 for size in sizes)


def num_all_to_all_peers(layout: Layout, devices_per_node: int) -> int:
    """Count the other ranks of its node with which a rank exchanges tokens or heads.

    Tensor-parallel ranks are next to each other, then those of a sequence, then data-parallel ones
    (planner/layout/ranks.py): so a node holds ``devices_per_node / tp`` neighbours on these axes.
    """
    neighbours = max(1, devices_per_node // layout.tp)
    return sum(min(degree, neighbours) - 1 for degree in (layout.ep, layout.sp))


def beyond_of(
    allocated_bytes: int, *, layout: Layout, device: Device, devices_per_node: int
) -> Beyond:
    """What the allocator and the device hold when a rank has allocated so much."""
    return beyond(
        allocated_bytes,
        device=device,
        num_groups=num_communicators(layout),
        all_to_all_peers=num_all_to_all_peers(layout, devices_per_node),
    )
