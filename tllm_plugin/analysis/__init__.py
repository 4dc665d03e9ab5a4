"""Analysis of finished runs: reads run folders, trains nothing."""
