"""Side-by-side measurements; each module is run by hand: `python -m benchmarks.NAME`."""
