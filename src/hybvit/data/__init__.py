"""Images in, batches out: ``datasets`` (by name), ``image_set`` (what they hold), ``batches`` (what a step sees)."""
