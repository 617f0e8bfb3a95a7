"""Transforms: a file each, from weights to weights of the same function that lose less when they are rounded."""
