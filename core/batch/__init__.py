"""JSONL batches: lines in, answers out, resumed where they were left."""
