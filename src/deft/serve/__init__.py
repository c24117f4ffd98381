"""Talking to a model: the `Assistant` class, the terminal and the page."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
