"""Input and output: paths and containers, pictures, records, HTTP, atomic files, the terminal, executors."""
