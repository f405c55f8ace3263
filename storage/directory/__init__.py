"""The writable store: a directory in the format of CNCF distribution (``registry:2``).

`reader` reads it, `store` changes it, `publish` makes each change durable, `uploads` has the upload
sessions. Bundles, garbage collection and repair build on this room and may not enter it.
"""
