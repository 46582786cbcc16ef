"""Text to tokens: reading files and datasets, tokenizers, and memory-mapped token files."""
