"""The edit at work inside a model: its tensors, its trigger, the modules that apply it, counts, proof that it acts."""
