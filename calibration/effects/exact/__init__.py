"""The exact effect of every late neuron without a full forward pass."""
