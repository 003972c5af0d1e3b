"""Where images come from: each file reads one kind of place; ``choose`` asks them in order."""
