"""Images in, batches out: ``images`` (files and pixel ranges), ``datasets`` (by name), ``batches`` (what a step sees)."""
