"""Which language deft speaks on the screen, and its words in it; code, exceptions and files stay English."""
