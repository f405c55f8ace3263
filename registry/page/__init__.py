"""The rollout page: a browser's view of a run, while it runs and after it.

`view` is the state at one moment, in sections; `feed` follows it for all viewers, and makes the
server-sent events of changes; `html` renders pages and reports that need no script; `static/` has
the style, the scripts and the icon, which are served as they are: nothing is built.

Nothing here is imported before somebody looks. This room must not import coverage, the lifecycle or
the endpoints: `registry.control.page_view` makes the views, `registry.api.page` serves them.
"""
