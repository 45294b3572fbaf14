"""OpenAI's routes over an engine, and what stands in front of them."""
