"""A grid's runs of equal shape trained side by side, as one model with a leading run dimension."""
