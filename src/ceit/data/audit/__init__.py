"""A set read as a whole, to find what is wrong with it."""
