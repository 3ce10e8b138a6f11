"""`vlmkit eval`: prediction files, the tasks that score them, results, comparisons and the HTML report."""
