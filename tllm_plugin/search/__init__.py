"""Search: choosing what the paper chooses on held-out training data, without paying for every trial in full."""
