"""How the cost of calibration grows, and what exact effects save."""
