"""Other registries: asking them for images, making bundles of their images, mirroring them.

`lists` reads lists of images and `versions` their ranges of tags. `client` asks one registry;
`credentials`, `registries`, `sources`, `blocking` and `reader` find and wrap it. `gather` plans a
bundle and `create` makes it; `copying` copies images through `streams` to `targets`, of which
registries are reached by `push`; sources and targets are each an `endpoint`. `pulled` is for the
server: it reads the list of `--until-pulled`.

`mirror` fetches content that a server's store lacks: `names` says from where, `health` knows each
upstream, `lookups` asks it in `tasks` that clients start, `download` is a blob that is arriving,
and `store` is the store as clients see it then.

Nothing here may import the server (`registry.server`) or its HTTP side: the commands that copy
images run in a process of their own, and content that is under way sends itself to any
`storage.interface.Sink`.
"""
