"""The settings of each study; nothing slow is imported."""
