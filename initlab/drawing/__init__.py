"""Recipes drawn into models, and models described as recipes."""
