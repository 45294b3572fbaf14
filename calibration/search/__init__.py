"""The search for a gate: its neurons, their bounds, and the trigger."""
