"""What exists: one description of a model, whatever file it came from.

Letters, used the same way in formulas, docs and tests:

    B micro-batch (sequences)    S sequence (tokens)        H hidden size
    F feed-forward size          A attention heads          G key/value heads
    D head size                  V vocabulary               L blocks
    E routed experts             K experts per token        P parameters on a rank before ZeRO
"""
