"""Models, and how a recipe is drawn into one."""
