"""Seconds of one optimizer step, layout by layout or for many layouts at once.

`step.step_time` takes a `Setting` (what stays the same) and `Shapes` (what layouts differ in, as
plain numbers or NumPy arrays) and returns a `StepTime`: seconds by what they are spent on, which
add up to the step. Nothing here has sizes of its own: products come from the shapes of the
model's parameters as tensor parallelism cuts them, element-wise traffic from the tapes of
`activations`, the division into stages and the schedule from `layout`.

It need not be exact in seconds, it must rank right. Devices state peaks; what is reached of them
is in `constants.yaml`, each figure with its source.
"""
