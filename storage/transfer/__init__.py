"""Images between stores and bundles: import and export."""
