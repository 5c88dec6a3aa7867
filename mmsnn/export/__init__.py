"""Calibrated networks as files for other software."""
