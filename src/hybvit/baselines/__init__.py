"""The systems that the paper compares with: ``wide_resnet`` and ``preact_resnet`` (classifiers), ``unet`` (DDPM), ``jem``."""
