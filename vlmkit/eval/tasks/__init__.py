"""The tasks of `vlmkit eval`, one file each; vlmkit/eval/registry.py lists them."""
