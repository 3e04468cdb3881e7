"""Quantising a checkpoint with calibration data, and writing it as a folder."""
