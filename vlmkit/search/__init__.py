"""Search in an index: queries, result lists, scores against a reference distribution, duplicates."""
