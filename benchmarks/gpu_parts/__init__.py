"""The parts of benchmarks/gpu.py. `plan` and what it names need neither torch nor Octavo; the modules that measure are imported by workers only."""
