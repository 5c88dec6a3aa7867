"""From a trained network to a spiking one: trace, fold, place neurons."""
from .folding import fold_batch_norm, pool_before_static_relu, qualified_names
from .placing import convert, place_neurons
from .tracing import ConversionError, trace

__all__ = ['ConversionError', 'convert', 'fold_batch_norm', 'place_neurons', 'pool_before_static_relu',
           'qualified_names', 'trace']
