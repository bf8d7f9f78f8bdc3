"""Reports: what each section shows and says, one file for each experiment."""
