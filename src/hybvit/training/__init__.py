"""Training: the loop, the optimizers, the averaged weights, the run folder, and the cost of a run."""
