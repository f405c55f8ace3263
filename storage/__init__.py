"""Content-addressed storage. Knows no HTTP and no users."""
