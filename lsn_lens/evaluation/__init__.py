"""What an intervention does to a model."""
