"""Execution that survives trouble: retries, circuit breakers, idempotency keys, leased secrets, sandboxes.

The only room that knows tenacity and pybreaker; both are imported when a tool first needs them.
"""
