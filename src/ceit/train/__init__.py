"""Training: one configuration, one loop, one run directory."""
