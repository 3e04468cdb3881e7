"""The operator table: one contract per operator, a reference and native versions."""

if __name__ != "qinfer.cuda_ops":
    # Imported as plain "cuda_ops" (for instance by "python -m cuda_ops.x" from the root) every
    # class would exist twice and isinstance checks between the twins would fail.
    raise ImportError("import this package as 'qinfer.cuda_ops', not as 'cuda_ops'")
