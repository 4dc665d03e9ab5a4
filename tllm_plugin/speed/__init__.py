"""Faster networks, data and teachers for any host's loop; knows tensors and modules, but no host and no config."""
