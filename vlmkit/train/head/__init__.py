"""`vlmkit train head`: a linear classifier, or a regression, on the vectors of a frozen embedder."""
