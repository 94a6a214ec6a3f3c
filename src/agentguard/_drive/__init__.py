"""The drivers: the only code that blocks or awaits."""
