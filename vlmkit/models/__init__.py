"""Models: types.py says what they offer, registry.py lists them, resolve.py finds and load.py opens them."""
