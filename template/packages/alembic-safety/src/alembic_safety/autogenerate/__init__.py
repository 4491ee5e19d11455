"""Configuration of autogenerate."""
