#!/bin/sh
# Upgrade one node after the other; the node that this runs on reboots when its turn is over.
# Started again, this continues with the node after it.
#
# usage: upgrade.sh NODE      the node that this runs on
set -eu
mkdir -p upgraded
nodes=$(grep -v '^#' nodes.txt)

for node in $nodes; do
    [ ! -e "upgraded/$node" ] || continue
    ssh "$node" '
        set -e
        docker rm --force web worker >/dev/null 2>&1 || true
        docker run --detach --restart always --name web --network host registry.example/shop/web:2
        docker run --detach --restart always --name worker --network host \
            registry.example/shop/worker:2
    ' >/dev/null
    touch "upgraded/$node"
    sync
    echo "$node: upgraded"
    if [ "$node" = "$1" ]; then
        echo "$node: rebooting"
        reboot
        # Mayfly's run must not end before the machine does.
        sleep 600
    fi
done

# Revert Mayfly's changes on the nodes; the images stay.
for node in $nodes; do
    script=$(mayfly node script --node "$node")
    printf '%s\n' "$script" | ssh "$node" sh -s -- revert --quiet
    echo "$node: as it was"
done
