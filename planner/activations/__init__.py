"""What one pass through a layer allocates and frees, operation by operation, for autograd.

`layers.stage_tapes` gives the tapes of a stage's layers, `layers.layer_tape` that of one layer.
"""
