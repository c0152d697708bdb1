"""Predictions and verdicts. Torch-free: works on tables alone."""
