"""Steering into or out of a language: texts under interventions, and their measures."""
