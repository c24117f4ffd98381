"""What the page and the terminal begin with; light, so that the command line can name them in its help."""

TEMPERATURE = 0.7
TOP_P = 0.9
