"""vLLM's own server, started with the guard's worker and behind the guard's gate."""
