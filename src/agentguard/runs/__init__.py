"""Runs: lifecycle, report, and the contract between a service and its agent."""
