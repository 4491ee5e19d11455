"""What autogenerate compares."""
