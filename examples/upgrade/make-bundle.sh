#!/bin/sh
# Write bundle.tar with the images of images.txt, each with one small file of its own: to try the
# example without a registry to fetch images from. Real bundles are made by `mayfly bundle create`.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
blobs=$work/oci/blobs/sha256
mkdir -p "$blobs"

case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac

# The same bytes whenever it is made.
archive() {
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$@"
}

# Move a file to the blobs; $digest and $size are then its own.
add() {
    digest=$(sha256sum <"$1" | cut -d ' ' -f 1)
    size=$(wc -c <"$1")
    mv "$1" "$blobs/$digest"
}

oci=application/vnd.oci.image
manifests=
while read -r image; do
    mkdir -p "$work/layer/srv"
    echo "$image" >"$work/layer/srv/image"
    archive -C "$work/layer" -cf "$work/layer.tar" srv
    add "$work/layer.tar"
    layer='{"mediaType":"'$oci'.layer.v1.tar","digest":"sha256:'$digest'","size":'$size'}'
    printf '{"architecture":"%s","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
        "$architecture" "sha256:$digest" >"$work/config"
    add "$work/config"
    printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}' "$oci.manifest.v1+json" \
        '{"mediaType":"'$oci'.config.v1+json","digest":"sha256:'"$digest"'","size":'"$size"'}' \
        "$layer" >"$work/manifest"
    add "$work/manifest"
    manifests="$manifests${manifests:+,}"'{"mediaType":"'$oci'.manifest.v1+json","digest":"sha256:'$digest'","size":'$size',"annotations":{"org.opencontainers.image.ref.name":"'$image'"}}'
done <images.txt
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/oci/oci-layout"
printf '{"schemaVersion":2,"manifests":[%s]}' "$manifests" >"$work/oci/index.json"
archive -C "$work/oci" -cf bundle.tar .
echo "bundle.tar: $(wc -l <images.txt) images"
