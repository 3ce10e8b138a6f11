"""What a package that extends vlmkit looks like: an embedder, a chat model, a data set, a metric, and so on."""
