"""What DeepSpeed allocates, when, and what it refuses; line numbers are of release 0.19.8."""
