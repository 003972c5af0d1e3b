"""Measurements of speed: each is a command that writes a JSON file with the machine it ran on."""
