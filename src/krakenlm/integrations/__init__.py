"""krakenlm as other libraries see it; each module needs its library."""
