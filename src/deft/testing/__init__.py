"""Tiny models and tokenizers of real architectures, for tests: deft's own, and those of its users."""
