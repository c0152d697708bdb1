"""Training: one run, and the grid of runs that confirms what a probe predicts."""
