"""What a run tells: iteration lines, a metrics file, TensorBoard, figures of throughput, a plot, a summary."""
