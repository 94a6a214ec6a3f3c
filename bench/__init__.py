"""Benchmarks: every figure is a ratio to a bare validated call that is measured beside it."""
