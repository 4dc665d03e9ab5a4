"""Showing results: one HTML page from several runs, and images for TensorBoard."""
