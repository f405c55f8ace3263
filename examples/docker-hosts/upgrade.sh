#!/bin/sh
# Start the new version on one host after the other. `mayfly run --prefetch ssh` runs this once
# every host has proved that it has every image, so nothing is pulled here.
set -eu
nodes=$(grep -v '^#' nodes.txt)
for node in $nodes; do
    ssh "$node" '
        set -e
        docker rm --force web worker >/dev/null 2>&1 || true
        docker run --detach --name web --network host registry.example/shop/web:2
        docker run --detach --name worker --network host registry.example/shop/worker:2
    ' >/dev/null
    # Revert Mayfly's changes on the host; the images stay.
    script=$(mayfly node script --node "$node")
    printf '%s\n' "$script" | ssh "$node" sh -s -- revert --quiet
    echo "$node: upgraded"
done
