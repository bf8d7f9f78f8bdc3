"""Generated texts: which language they are in, and whether they are any good."""
