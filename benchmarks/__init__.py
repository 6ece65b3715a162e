"""Speed of the library against floors and rivals, measured as ratios inside one run: ``python -m benchmarks.NAME``."""
