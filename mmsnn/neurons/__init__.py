"""What a neuron is: its state, one step, its closed form, and how thresholds are chosen."""
from .integrate_and_fire import RESETS, FiringRule, integrate_and_burst, integrate_and_fire
from .layer import IFNeuron
from .model import per_channel

__all__ = ['RESETS', 'FiringRule', 'IFNeuron', 'integrate_and_burst', 'integrate_and_fire', 'per_channel']
