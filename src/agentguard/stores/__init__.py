"""The larder: what is remembered, in memory or in a SQLite file, behind one protocol."""

from agentguard.stores.opening import open_store

__all__ = ["open_store"]
