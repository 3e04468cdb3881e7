"""Model families: one module and one entry point each."""
