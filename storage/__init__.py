"""Content-addressed storage: blobs, manifests, tags, and the bundles that images come in.

Nothing here may know HTTP, users or the server's lifetime. The rooms, top down; each imports lower
ones only (`tests/test_architecture.py`):

    transfer/  upkeep/     import and export; collect, verify and repair
    overlay    survey      a writable store over bundles; the images of a store
    filetree/              the files of an image
    bundle/                image archives, served where they lie
    directory/             the writable store, in the format of registry:2
    images referrers facts of many manifests reading interface the interface of a store manifest
    reference digest trees files errors
"""
