"""Real checkpoints: what other quantizers write, made with the quantizers themselves, and read with Octavo.

Not part of `make test` (the makers are large): `make checkpoints` sets up one environment per maker and lets each quantize SmolLM2-135M,
`make test-checkpoints` loads every one with Octavo, compares with the maker's own dequantization and writes the table of docs/checkpoints.md.
"""
