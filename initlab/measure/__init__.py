"""Measuring a model: hooks in, tables out."""
