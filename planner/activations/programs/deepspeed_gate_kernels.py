"""Steps of DeepSpeed's gates: masks, places, noise and the balance loss.

Line numbers are of moe/sharded_moe.py of DeepSpeed 0.19.8. Masks and places are int64 and outside
the graph. (S, E): tokens by experts.
"""

from planner.activations.eager import Machine, Tensor, begin, empty, finish, masked_fill, mul
from planner.activations.eager.autograd import Node
from planner.activations.eager.routing import _divide_back
from planner.activations.eager.tensor import Shape
from planner.activations.eager.views import like


def balance(gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``l_aux`` (:249), each expert's share of tokens, and the mean gates.

    The layer keeps the first, its graph the second, a variable of the gate the third.
    """
    machine, experts = gates.machine, gates.shape[1]
    mean = empty(machine, (experts,), "fp32")
    wide = empty(machine, gates.shape, "fp32")
    shares = empty(machine, (experts,), "fp32")
    del wide
    return empty(machine, (), "fp32"), shares, mean


def uniform(m: Machine, shape: Shape) -> Tensor:
    """``Uniform.rsample``: drawn, stretched, moved."""
    drawn = empty(m, shape, "fp32")
    stretched = empty(m, shape, "fp32")
    result = empty(m, shape, "fp32")
    del drawn, stretched
    return result


def uniform_times(m: Machine, mask: Tensor) -> Tensor:
    """The mask times random numbers, so that chance decides who is dropped (:267)."""
    drawn = uniform(m, mask.shape)
    result = empty(m, mask.shape, "fp32")
    del drawn
    return result


def gumbel(m: Machine, shape: Shape) -> Tensor:
    """``Gumbel.rsample``: four transforms of uniform numbers, two logarithms among them."""
    result = uniform(m, shape)
    for _ in range(2):
        logarithm = empty(m, shape, "fp32")
        del result
        negative = empty(m, shape, "fp32")
        result = empty(m, shape, "fp32")
        del logarithm, negative
    return result


def noisy(m: Machine, logits: Tensor) -> Tensor:
    """Logits with Gumbel noise, which only the choice sees (:225)."""
    noise = gumbel(m, logits.shape)
    result = like(logits)
    del noise
    return result


def fullest(m: Machine, order: Tensor, room: int) -> Tensor:
    """``topk(order, room, dim=0)[1]``: the tokens that each expert takes."""
    shape = (room, order.shape[1])
    values = empty(m, shape, order.dtype)
    places = empty(m, shape, "int64")
    del values
    return places


def product(mask: Tensor, other: Tensor) -> Tensor:
    """``mask * other`` of two int64 masks."""
    del other
    return empty(mask.machine, mask.shape, "int64")


def evict(indices: Tensor) -> tuple[Tensor, Tensor]:
    """-1 in place of the expert that has no room for a token, and where that is (:289)."""
    summed = like(indices)
    scaled = like(indices)
    del summed
    shifted = like(indices)
    del scaled
    return like(indices), shifted


def counted(m: Machine, mask: Tensor) -> Tensor:
    """``cumsum(mask, dim=0) - 1``."""
    sums = empty(m, mask.shape, "int64")
    result = empty(m, mask.shape, "int64")
    del sums
    return result


def summed_product(m: Machine, mask: Tensor) -> Tensor:
    """``sum(locations * mask, dim=1)``."""
    both = empty(m, mask.shape, "int64")
    result = empty(m, mask.shape[:1], "int64")
    del both
    return result


def without(logits: Tensor) -> Tensor:
    """``logits.masked_fill(mask1.bool(), -inf)``, kept with its mask by the graph (:341)."""
    return masked_fill(logits, empty(logits.machine, logits.shape, "bool"))


def evict_empty(m: Machine, indices: Tensor) -> Tensor:
    """``where(mask.any(dim=1), indices, -1)`` (:394)."""
    some = empty(m, indices.shape, "bool")
    result = where_kept(m, indices.shape)
    del some
    return result


def where_kept(m: Machine, shape: Shape) -> Tensor:
    """``where(kept, indices, full_like(indices, -1))``."""
    full = empty(m, shape, "int64")
    result = empty(m, shape, "int64")
    del full
    return result


def picked(m: Machine, shape: Shape) -> Tensor:
    """``locations.gather(1, top_idx) * kept``."""
    own = empty(m, shape, "int64")
    result = empty(m, shape, "int64")
    del own
    return result


def stacked(m: Machine, k: int, tokens: int) -> Tensor:
    """(K, S) int64 in one block, then as int32."""
    block = empty(m, (k, tokens), "int64")
    result = empty(m, (k, tokens), "int32")
    del block
    return result


def most_likely(m: Machine, best: Tensor, room: int, gates: Tensor) -> list[Tensor]:
    """The tokens that an expert keeps are those with the highest gates (:449); all named."""
    zeros = like(gates)
    node = begin(_unused, best)
    spread = finish(node, like(gates))
    del zeros
    shape = (room, gates.shape[1])
    values, places = empty(m, shape, "fp32"), empty(m, shape, "int64")
    return [spread, values, places, empty(m, gates.shape, "bool")]


def _unused(node: Node, gradient: Tensor) -> list[Tensor]:
    raise AssertionError((node, gradient))


def divide(first: Tensor, second: Tensor) -> Tensor:
    """``first / second``, both saved."""
    node = begin(_divide_back, first, second)
    if node is not None:
        node.save(second, first if node.needs(1) else None)
    return finish(node, like(first))


def pair(gates: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gates of the two chosen experts, divided in place by their sum (:384-392), as one node.

    Returns them as one tensor, and what the gate's variables hold beside it: the fp32 masks, the
    second gates, the sum. Kept, too: the sum before it was clamped, the gates before the division.
    """
    machine, tokens = gates.machine, gates.shape[:1]
    node = begin(_pair_back, gates)
    masks = tuple(like(gates) for _ in range(2))
    first, second = (empty(machine, tokens, "fp32") for _ in range(2))
    total = empty(machine, tokens, "fp32")
    clamped = like(total)
    if node is not None:
        node.save(*masks, total, clamped, like(first), like(second))
    return finish(node, first), (*masks, second, clamped)


def stack_pair(first: Tensor) -> Tensor:
    """``torch.stack([gates1_s, gates2_s])``."""
    node = begin(_stack_back, first)
    return finish(node, empty(first.machine, (2, *first.shape), "fp32"))


def _stack_back(node: Node, gradient: Tensor) -> list[Tensor]:
    """Both halves, as one."""
    del node
    return [Tensor(gradient.storage, gradient.shape[1:], gradient.strides[1:], gradient.dtype)]


def _pair_back(node: Node, gradient: Tensor) -> list[Tensor]:
    """Two divisions, the sum's clamp, two products with the masks that are added up."""
    first_mask, second_mask, total, _, first, second = node.unpack()
    node.saved = []
    to_second, second_sum = _division_back(gradient, second)
    del second
    to_first, first_sum = _division_back(gradient, first)
    del first, _
    summed = like(total)
    del first_sum, second_sum
    inside = like(total, "bool")
    to_total = like(total)
    del inside, summed, total
    added = like(to_second)
    del to_second
    to_gates = like(second_mask)
    del added, second_mask
    added = like(to_first)
    del to_first, to_total
    other = like(first_mask)
    del added, first_mask
    return [_sum(to_gates, other)]


def _sum(first: Tensor, second: Tensor) -> Tensor:
    """Of two gradients; in place but under a ledger."""
    del second
    return first if first.machine.in_place else like(first)


def _division_back(gradient: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of what was divided and of the divisor.

    The division wrote into a view, so that the whole gradient is copied, then the view's part
    (CopySlices, torch/csrc/autograd/functions/tensor.cpp).
    """
    zeros, whole, part = like(before), like(before), like(before)
    quotient, again, negative = like(before), like(before), like(before)
    to_divisor = mul(gradient, before)
    del quotient, again, negative
    divided = like(before)
    del part, divided, zeros
    return whole, to_divisor
