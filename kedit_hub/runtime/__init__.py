"""Applying patches to a live model: views, side branches, the two-key gate, fusing."""
