"""Measuring this package: see README.md beside this file."""
