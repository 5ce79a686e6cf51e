"""From a study to its results: plan, workers, progress, and the commands."""
