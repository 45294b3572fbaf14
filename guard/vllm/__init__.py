"""The guard inside stock vLLM: the only folder that imports it."""
