"""Plumbing that knows no domain: settings, MongoDB, objects, broker, telemetry, health, clock, errors, fail points."""
