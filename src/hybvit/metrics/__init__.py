"""Tensors in, numbers out: nothing here loads data or weights."""
