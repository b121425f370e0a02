"""The paper's tables and figures: what they need, what came out, and the paper's own printed figures beside it."""
