"""Execution backends: one module and one entry point each."""
