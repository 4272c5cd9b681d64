"""Side-by-side measurements. `python -m benchmarks.NAME` prints a table and, last, one JSON line."""
