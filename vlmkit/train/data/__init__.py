"""DATA of `vlmkit train`: rows become checked samples; epochs and validation draw from them."""
