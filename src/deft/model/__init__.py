"""Models once they are found: loaded, and what training, scoring, evaluation and chat all stand on."""
