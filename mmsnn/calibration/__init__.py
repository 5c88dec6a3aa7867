"""One walk over the network, layer by layer, on a few images."""
