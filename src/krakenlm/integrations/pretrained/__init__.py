"""Models of other families: Transformers folders and GGUF files in, Transformers folders out."""
