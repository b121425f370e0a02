"""The method: torch only, and it reads like the paper, whose equations its docstrings cite."""
