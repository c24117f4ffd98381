"""Tokenizers that transformers does not build exactly from the files of a checkpoint."""
