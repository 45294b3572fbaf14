"""`neuron-guard bench robustness`: what breaks the guard? Attacks on a guarded model, counted and never shown."""
