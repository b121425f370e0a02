"""Reproduction of the paper's tables and figures: the runs they need, their results, and the published figures."""
