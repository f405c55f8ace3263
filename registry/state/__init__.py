"""The state directory: what one run keeps there, over crashes, and what ends with it."""
