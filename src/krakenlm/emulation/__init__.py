"""One device that stands for several: the planner's links held on it, and the paper's grid."""

SUMMARY, PICTURE = "paper-grid.json", "paper-grid.png"
"""What ``krakenlm bench paper-grid`` leaves in its folder, beside a file a case."""
