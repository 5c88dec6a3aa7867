"""One walk over the network, layer by layer, on a few images."""
from .procedure import CalibrationReport, LayerReport, calibrate, calibrate_layer, observe, set_threshold

__all__ = ['CalibrationReport', 'LayerReport', 'calibrate', 'calibrate_layer', 'observe', 'set_threshold']
