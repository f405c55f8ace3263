"""The installed package. `registry`, `storage` and `auth` are links to the folders beside it."""
