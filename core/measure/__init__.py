"""Measuring a model: its speed, beside what its memory allows, and its accuracy."""
