"""What a training step works on, traced without running it at full size."""
