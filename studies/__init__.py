"""The slower studies behind the report's claims: `make study`, or `python -m studies NAME ...`."""
