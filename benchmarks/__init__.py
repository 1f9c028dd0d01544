"""Idlewheel beside its floors, beside direct runs and beside its peers: `python -m benchmarks`."""
