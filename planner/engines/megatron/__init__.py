"""Megatron-Core: main gradients, the (distributed) optimizer, its pipeline schedules."""
