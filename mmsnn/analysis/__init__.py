"""What a spiking network costs, and where its error comes from."""
from .errors import QUANTILES, box, channel_errors, parameter_bytes, threshold_shares

__all__ = ['QUANTILES', 'box', 'channel_errors', 'parameter_bytes', 'threshold_shares']
