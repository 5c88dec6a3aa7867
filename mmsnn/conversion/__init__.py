"""From a trained network to a spiking one: trace, fold, place neurons."""
