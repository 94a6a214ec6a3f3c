"""Budgets: which accounts a call is charged to, and the arithmetic of holds."""
