"""The paper's baselines: ``wide_resnet`` and ``preact_resnet`` (classifiers), ``unet`` (DDPM), and ``jem``."""
