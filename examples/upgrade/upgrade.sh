#!/bin/sh
# Bring the images of an upgrade to nodes, one after the other. Mayfly runs it:
#
#   mayfly run --until-pulled images.txt --nodes nodes.txt bundle.tar -- ./upgrade.sh
#
# usage: upgrade.sh [NODE...]      default: all of nodes.txt
#
# The nodes here are three runtimes of this machine: NAME-docker, NAME-containerd, NAME-podman. In
# your cluster, copy the output of `mayfly node-config show` and `mayfly credentials`, and pull by
# ssh.
set -eu
: "${MAYFLY_HOST:?this script is started by mayfly run: see README.md}"
cd "$(dirname "$0")"
if [ "$#" -eq 0 ]; then
    # shellcheck disable=SC2046  # one word for each line is intended
    set -- $(cat nodes.txt)
fi

# The node's credential is a file that nobody else may read, and that is removed at the end.
trap 'rm -rf login' EXIT
log_in() {
    (
        umask 077
        mkdir -p "login/$1"
        mayfly credentials --node "$1" --format docker >"login/$1/$2"
    )
}

pull_docker() {
    mayfly node-config apply --runtime docker
    log_in "$1" config.json
    while read -r image; do
        docker --config "login/$1" pull --quiet "$MAYFLY_HOST/$image"
    done <images.txt
}

pull_containerd() {
    # The node's own credential goes into hosts.toml, with the trust.
    mayfly node-config apply --runtime containerd --node "$1"
    while read -r image; do
        ctr --namespace k8s.io images pull --hosts-dir /etc/containerd/certs.d \
            "$MAYFLY_HOST/$image"
    done <images.txt
}

pull_podman() {
    mayfly node-config apply --runtime podman
    log_in "$1" auth.json
    while read -r image; do
        podman pull --quiet --authfile "login/$1/auth.json" "$MAYFLY_HOST/$image"
    done <images.txt
}

for node in "$@"; do
    echo "$node: pulling"
    "pull_${node##*-}" "$node"
    echo "$node: done"
done
