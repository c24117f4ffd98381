"""Models: finding and loading them, and what training, scoring and evaluation all stand on."""
