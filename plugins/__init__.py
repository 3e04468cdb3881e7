"""The built-in plugins. They arrive through entry points like anyone else's."""

if __name__ != "qinfer.plugins":
    # Imported as plain "plugins" (for instance by "python -m plugins.x" from the repository's root)
    # every class would exist twice and isinstance checks between the twins would fail.
    raise ImportError("import this package as 'qinfer.plugins', not as 'plugins'")
