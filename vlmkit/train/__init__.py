"""Training. Each file does one thing: data -> features -> batches -> model -> loop -> output folder."""
