"""Adapters: one module per framework, each imported by its own name and only where its framework is installed."""
