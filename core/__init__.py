"""The engine, the plugin contract and the commands; knows no model, scheme or backend."""

if __name__ != "qinfer.core":
    # Imported as plain "core" (for instance by "python -m core.x" from the repository's root)
    # every class would exist twice and isinstance checks between the twins would fail.
    raise ImportError("import this package as 'qinfer.core', not as 'core'")
