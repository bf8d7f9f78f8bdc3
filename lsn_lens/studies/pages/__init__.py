"""The page of each study."""
