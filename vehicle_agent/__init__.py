"""The car's side: telemetry out, leases in, rows computed while the car's own policy allows it."""
