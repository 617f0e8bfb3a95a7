"""Rounders: a file each, from float weights to QTensors."""
