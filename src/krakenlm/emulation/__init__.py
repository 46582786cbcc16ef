"""One device that stands for several: the planner's links held on it, and the paper's grid."""
