"""Chat models, one file a family, and how the next token is chosen."""
