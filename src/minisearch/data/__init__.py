"""Readers, writers and audits of real data formats, and of data that comes as Python packages."""
