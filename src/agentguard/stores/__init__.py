"""Stores: where runs, calls, budgets, approvals, state, switches and the audit trail live."""
