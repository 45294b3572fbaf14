"""Measures neuron-guard against the truth. May import all other packages; nothing imports it."""
