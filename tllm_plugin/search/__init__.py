"""Search for eta and other options on held-out training data, sharing common epochs between trials."""
