"""What runs in time: affine operations, the order of computation, the time loop, the spiking network."""
