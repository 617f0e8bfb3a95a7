"""Causes: a file each, in the order of their `place`; see ../../tree.py."""
