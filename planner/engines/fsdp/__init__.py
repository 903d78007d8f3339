"""PyTorch's FullyShardedDataParallel around each block and around the whole model."""
