"""What a spiking network costs, and where its error comes from."""
