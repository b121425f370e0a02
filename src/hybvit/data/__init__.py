"""From image files to training batches: ``datasets`` opens a data set, ``image_set`` stores it, ``batches`` makes batches."""
