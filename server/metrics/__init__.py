"""What an operator sees: counters of the front, the engine's snapshot, and both as Prometheus families over HTTP."""
