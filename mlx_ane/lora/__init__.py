"""What `mlx-ane lora` checks before it works: options, files, rows, adapters."""
