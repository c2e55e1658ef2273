"""Us and the peers side by side: `python -m benchmarks NAME` (see README.md in this folder)."""
