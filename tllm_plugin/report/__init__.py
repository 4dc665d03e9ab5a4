"""Reports: one HTML page on several runs."""
