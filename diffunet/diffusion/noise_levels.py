"""The noise levels by which losses are told apart; a module of its own, for what reads them without torch."""

NOISE = (0.06, 0.15, 0.3, 0.6, 1.2, 2.5, 6.0)
"""The noise levels (sigma) between the 8 for which the mean training loss is recorded."""
