"""The files of an image, as a union mount of its layers shows them.

`layer` reads the entries of one layer, `tree` merges layers. Reads any content by
`storage.interface`; nothing here may know a kind of store.
"""
