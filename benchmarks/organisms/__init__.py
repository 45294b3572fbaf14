"""Small chat models whose gate is known by construction, with the recipe that makes them."""
