"""Measures of generated texts: language and quality."""
