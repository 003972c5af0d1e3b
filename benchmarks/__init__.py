"""Measurements of what the documentation claims; not installed.

A package of its own, for one of this name among the installed ones would else be taken: pyarrow 17 left one there.
"""
