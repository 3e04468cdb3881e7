"""Quant schemes: one module and one entry point each."""
