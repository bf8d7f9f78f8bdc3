"""The working language: the language of each layer's predictions."""
