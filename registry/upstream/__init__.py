"""Other registries: lists of the images to fetch from them.

Nothing here may import the server (`registry.server`) or its HTTP side: the commands that copy
images run in a process of their own.
"""
