"""The evidence as one HTML page."""
