"""From prompt files and public data sets to batches of token ids, split for search, validation and verdict."""
