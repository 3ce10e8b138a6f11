"""Public data sets as records, one file each."""
