"""The format of CNCF distribution (``registry:2``): read, written durably, and its uploads."""
