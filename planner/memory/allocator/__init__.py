"""PyTorch's caching allocator, without the memory: from allocations to what is reserved."""
