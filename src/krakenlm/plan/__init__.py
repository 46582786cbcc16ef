"""Latency and memory of a model that was never run: its graph, played against profiles.

``trace`` runs the engine itself on tensors without memory and writes down what it would compute and
send; ``device`` and ``link`` say how long each of these takes; ``schedule`` plays them, computing
beside communicating; ``planner`` puts the three together. No module here knows an architecture.
"""
