"""The audit trail: canonical records in one chain per run, their verification, export, redaction and sinks.

The stores number and keep the records; this room says what a record is, and how anybody can check later
that none was changed, removed, reordered or cut off.
"""
