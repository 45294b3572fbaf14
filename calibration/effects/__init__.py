"""The outcome Y, and how much of it passes through a mediator, with intervals."""
