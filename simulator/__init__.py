"""Simulated cars whose comings and goings follow real charging sessions. Pure and seeded; never talks to a broker."""
