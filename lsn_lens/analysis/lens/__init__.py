"""The working language: which language's tokens each layer would write."""
