"""Models for programs without hybvit: graphs for ONNX and torch.export, and a description of them."""
