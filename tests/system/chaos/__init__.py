"""Faults by a seeded plan, on real processes, and an oracle that says what must hold after every run."""
