"""Instruction data: files in, `Example` out, and back."""
