"""Dual encoders: mini, open_clip, transformers, and PyTorch models exported to ONNX."""
