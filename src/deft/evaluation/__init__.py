"""Evaluation: what a model can do, per ability and with intervals."""
