"""What a spec says, its file, and the model that it belongs to."""
