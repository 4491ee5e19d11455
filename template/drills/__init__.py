"""Drills: what migrations promise in production, done to a real server and counted."""
