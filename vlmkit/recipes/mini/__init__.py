"""How `mini` is made: data, towers, training, export to ONNX, measurements and model cards."""
