"""Who is asking and what they may do. Knows no HTTP framework and no storage."""
