"""Tasks: accuracy on items of a file or a Hub data set, with and without an intervention."""
