"""What carries sums from rank to rank: the Reducers behind ``krakenlm.model.reduce``."""
