"""Calibrated networks as files for other software."""
from .formats import NEEDS, Simulation, export, to_onnx

__all__ = ['NEEDS', 'Simulation', 'export', 'to_onnx']
