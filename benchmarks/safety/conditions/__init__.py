"""What is compared: no guard, the guard, and baselines."""
