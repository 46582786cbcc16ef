"""Measures the machine it runs on, as a profile that the planner reads."""
