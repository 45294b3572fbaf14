"""What a gate does on requests that the search has not seen, and the verdict on it."""
