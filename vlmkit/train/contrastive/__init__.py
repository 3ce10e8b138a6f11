"""Contrastive training. Each file does one thing: data -> batches -> model -> loop -> folder."""
