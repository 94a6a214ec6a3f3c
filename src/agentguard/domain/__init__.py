"""Frozen nouns that every room shares: no logic, no I/O, the standard library alone."""
