"""Data sets, models and pictures from the network: complete or not at all, resumed, verified."""
