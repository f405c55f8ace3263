"""Which node has which image, concluded from requests and kept across crashes.

*A node's pull is many requests.* `pulls` follows each node through HEAD, manifest, children and
blobs, and knows the requests that are still expected of the node. So a pull is under way also while
no request is in flight; that decides when coverage is final and which requests a drain still
serves.

*Facts, then conclusions.* `ledger` keeps facts only: this node was served this manifest, this blob
did not arrive there. It survives a kill of the server. `states` and `coverage` conclude from it,
and from the digests that tags point at now, which node has which image.

    requests ──► observer ──► pulls                  under way; lost at a kill
                    │    └──► ledger ──► ledger_file  facts; kept
                    └► owners, manifest_graph         which image a blob is part of
    ledger, pulls, store_queries ──► states ──► coverage ──► report, condition "covered"

The request path calls `observer` only. Only the event loop's thread may use these objects, except
for methods that say "may read".

This room must not import endpoints, conditions, the drain or the report.
"""
