"""Plain PyTorch on one device, or on several under DistributedDataParallel."""
