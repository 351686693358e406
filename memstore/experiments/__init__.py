"""Experiments with a fixed seed: what the prototype's scripts tried, and the field's own sweeps."""
