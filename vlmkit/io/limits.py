"""The most pixels that a picture may have; it stands alone, as every `--help` tells it."""

MAX_PIXELS = 500_000_000  # by default, against files that claim to have more than any camera or scanner writes
MAX_PIXELS_VARIABLE = "VLMKIT_MAX_PIXELS"  # in the environment, which processes of a data loader share
