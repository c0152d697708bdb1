"""Steps of somebody's own training loop, recorded."""
