"""Measurements: typed results, the runs that make them, pictures drawn from them."""
