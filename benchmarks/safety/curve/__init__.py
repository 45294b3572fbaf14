"""Refusal against cost as the guard's strength grows."""
