"""Exported models: a folder with a program, its parameters, and a manifest that explains it."""
