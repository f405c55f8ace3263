"""Other registries: asking them for images, and making bundles from what they hold.

`lists` reads lists of images and `versions` their ranges of tags. `client` asks one registry;
`credentials`, `registries`, `sources`, `blocking` and `reader` find and wrap it. `gather` plans a
bundle and `create` makes it. `pulled` is for the server: it reads the list of `--until-pulled`.

Nothing here may import the server (`registry.server`) or its HTTP side: the commands that copy
images run in a process of their own.
"""
