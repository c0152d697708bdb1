"""A model looked at once: its blocks, the residual stream, the roles of its parameters, and where to measure."""
