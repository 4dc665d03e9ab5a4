"""TLLM in a training loop of the user's own: `Session`, its data, its options and its checkpoint."""
