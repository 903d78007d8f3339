"""Seconds of one layer's passes, one micro-batch, for many sizes of micro-batch at once."""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.model.description import Layer, Moe
from planner.spec.layout import Layout
from planner.timing import constants
from planner.timing.attention import core_seconds
from planner.timing.matmul import matmul_seconds
from planner.timing.messages import Messages, message_seconds
from planner.timing.products import Core, Product, core, products
from planner.timing.shapes import Numbers, Seconds, Setting
from planner.timing.traffic import made_by_passes, moved_bytes

Sizes = NDArray[np.int64]


class PassSeconds(NamedTuple):
    """One pass, arrays over sizes of micro-batches."""

    matmul: Seconds
    attention: Seconds
    traffic: Seconds
    launch: Seconds
    """What the device waits for the host."""
    tensor_parallel: Seconds
    sequence_parallel: Seconds
    expert_parallel: Seconds

    @property
    def seconds(self) -> Seconds:
        """All of it."""
        return np.sum(self, axis=0)


class LayerSeconds(NamedTuple):
    """A layer's passes, with their flops."""

    forward: PassSeconds
    backward: PassSeconds
    core: PassSeconds
    """The core of attention forward: selective recomputation runs it again."""
    forward_flops: Seconds
    backward_flops: Seconds
    core_flops: Seconds


class Work(NamedTuple):
    """Of one pass: bytes that element-wise operations move for each sequence, and kernels."""

    bytes: int
    kernels: int


class Profile(NamedTuple):
    """What a layer does on one rank, whatever the size of the micro-batch."""

    products: tuple[Product, ...]
    core: Core | None
    forward: Work
    backward: Work
    again: Work
    """The core of attention alone."""


@lru_cache(maxsize=4096)
def profile(layer: Layer, setting: Setting, layout: Layout) -> Profile:
    """Read off the layer's parameters and its tape."""
    used, inside = products(layer, setting, layout), core(layer, setting, layout)
    made = made_by_passes(layer, setting, layout)
    element = setting.rates.element_bytes
    tokens = element * (setting.training.sequence_length // layout.sp)
    context = element * inside.outputs_per_sequence if inside else 0
    gradients = element * inside.gradients_per_sequence if inside else 0
    outputs = int(tokens * sum(p.outputs_per_token for p in used)) + context
    inputs = int(tokens * sum(p.gradients_per_token for p in used)) + gradients
    return Profile(
        used,
        inside,
        Work(moved_bytes(made.forward.bytes, outputs), made.forward.kernels),
        Work(moved_bytes(made.backward.bytes, inputs, made.saved_bytes), made.backward.kernels),
        Work(moved_bytes(made.core.bytes, context), made.core.kernels),
    )


def layer_seconds(layer: Layer, setting: Setting, layout: Layout, sizes: Sizes) -> LayerSeconds:
    """For micro-batches of ``sizes`` sequences."""
    # What has no experts is the same whatever ep is, and is computed once.
    known = profile(layer, setting, layout if _routes(layer) else replace(layout, dp=1, ep=1))
    tokens = sizes * (setting.training.sequence_length // layout.sp)
    zeros = np.zeros(len(sizes))
    sent = message_seconds(layer, setting, layout, tokens)
    inside = core_seconds(known.core, sizes, setting, backward=False)
    forward, inputs, weights = (
        sum((product(each, tokens, setting) for each in known.products), start=zeros)
        for product in (_output, _input_gradient, _weight_gradient)
    )
    back = core_seconds(known.core, sizes, setting, backward=True)
    sent_back = beside(sent, weights) if setting.overlaps_tensor_parallel else sent
    return LayerSeconds(
        _pass(setting, sizes, (forward, inside), known.forward, sent),
        _pass(setting, sizes, (inputs + weights, back), known.backward, sent_back),
        _pass(setting, sizes, (zeros, inside), known.again, Messages(zeros, zeros, zeros)),
        *_flops(known, tokens, sizes),
    )


def _routes(layer: Layer) -> bool:
    return isinstance(layer.mlp, Moe)


def _pass(
    setting: Setting,
    sizes: Sizes,
    computed: tuple[Seconds, Seconds],
    work: Work,
    sent: Messages,
) -> PassSeconds:
    moved = work.bytes * sizes / setting.rates.memory_bytes_per_second
    device = computed[0] + computed[1] + moved
    launch = launch_seconds(work.kernels, device, blocking=setting.launch_blocking)
    return PassSeconds(*computed, moved, launch, *sent)


def launch_seconds(kernels: int, device_seconds: Seconds, *, blocking: bool) -> Seconds:
    """What launches add: all where the host waits for each kernel, else what it lags behind."""
    if blocking:
        each = constants.MICRO * constants.constant("blocking_launch_microseconds")
        return np.full(np.shape(device_seconds), kernels * each)
    host = kernels * constants.MICRO * constants.constant("launch_microseconds")
    return np.maximum(0.0, host - device_seconds)


def _flops(known: Profile, tokens: Sizes, sizes: Sizes) -> tuple[Seconds, Seconds, Seconds]:
    """Forward; backward, without gradients of frozen weights; of attention's core forward."""
    dense = tokens * sum(each.flops_per_token for each in known.products)
    trained = tokens * sum(each.flops_per_token for each in known.products if each.trained)
    inside = sizes * (known.core.flops_per_sequence if known.core else 0.0)
    return dense + inside, dense + trained + 2 * inside, inside


def beside(sent: Messages, compute: Seconds) -> Messages:
    """What is left of tensor-parallel messages that are sent while something is computed."""
    return sent._replace(tensor_parallel=np.maximum(0.0, sent.tensor_parallel - compute))


def _output(product: Product, tokens: Sizes, setting: Setting) -> Seconds:
    rows = tokens * product.tokens_share
    return _seconds(setting, product.groups, (rows, product.columns, product.inner))


def _input_gradient(product: Product, tokens: Sizes, setting: Setting) -> Seconds:
    rows = tokens * product.tokens_share
    return _seconds(setting, product.groups, (rows, product.inner, product.columns))


def _weight_gradient(product: Product, tokens: Sizes, setting: Setting) -> Seconds:
    rows = tokens * product.tokens_share
    if not product.trained:
        return np.zeros(len(tokens))
    return _seconds(setting, product.groups, (product.columns, product.inner, rows))


def _seconds(setting: Setting, groups: int, shape: tuple[Numbers, Numbers, Numbers]) -> Seconds:
    return matmul_seconds(*shape, groups=groups, rates=setting.rates)
