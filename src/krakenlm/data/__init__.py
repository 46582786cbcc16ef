"""Text to tokens: reading files, tokenizers, and memory-mapped token files."""
