"""What a model does with a request: it refuses, complies, or its output is garbled."""
