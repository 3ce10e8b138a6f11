"""Data sets, models and pictures from the network: whole or not at all, resumed, verified."""
