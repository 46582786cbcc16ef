"""From a model that awaits its sums to one that hides them, with little training."""
