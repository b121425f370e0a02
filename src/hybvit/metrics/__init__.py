"""Metrics: tensors in, numbers out. Nothing here loads data or weights."""
