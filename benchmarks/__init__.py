"""What the rendered project costs: `make bench`."""
