"""Whether the gate is found, and what is claimed of it, on models whose gate is known."""
