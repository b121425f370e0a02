"""The method: network, diffusion, samplers and objective. It depends on torch only; docstrings cite the paper's equations."""
