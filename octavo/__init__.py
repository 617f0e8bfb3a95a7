"""Octavo: neural networks in fewer bits, served with evidence."""

__version__ = "0.1.0"
