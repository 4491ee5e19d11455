"""One package per domain: `models.py` and `router.py` in it are found by themselves."""
