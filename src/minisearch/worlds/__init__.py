"""Seeded worlds that emit the same records as the real data sets."""
