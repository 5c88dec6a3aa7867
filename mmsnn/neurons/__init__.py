"""What a neuron is: its state, one step, its closed form, and how thresholds are chosen."""
