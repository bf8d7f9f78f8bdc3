"""What each study can be told; nothing slow is imported."""
