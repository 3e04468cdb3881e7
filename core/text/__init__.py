"""Text: chat templates, tokenizers, tokens back to text, and the corpora that come along."""
