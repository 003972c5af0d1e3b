"""The version. ``ceit_cli`` has it, too, to print it without importing the package; a test compares the two."""

__version__ = "0.1.0"
