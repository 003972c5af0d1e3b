"""A finished run on one page: one HTML file that needs nothing else, and asks nobody for anything."""
