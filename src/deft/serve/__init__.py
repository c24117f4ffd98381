"""Talking to a model: the `Assistant` class, the terminal and the page."""
