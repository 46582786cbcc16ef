"""Inference on any number of ranks: prefill, decoding, sampling, requests and their texts."""
