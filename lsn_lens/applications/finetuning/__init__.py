"""Training of the weights of chosen units alone."""
