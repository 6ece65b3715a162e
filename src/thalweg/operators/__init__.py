"""A layer as a linear operator."""
