"""From prompts to an edit spec: which neurons let a harmful request through, with the evidence for it."""
