"""The embedded engine: a guarded transformers model that generates for many requests at once."""
