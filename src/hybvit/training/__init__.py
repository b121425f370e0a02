"""Training: the loop, its optimizers and average, the run folder, and what a training costs."""
