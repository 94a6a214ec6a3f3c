"""Tools: what may be called. Definitions, argument and result validation, the registry and its exports.

Nothing in this room runs a tool body, decides a call or reads a clock.
"""
