#!/usr/bin/env bash
# Build the one file for another architecture: `make dist ARCH=aarch64`. It is built by that
# architecture's own Debian 12 in a directory, whose programs run by qemu, in a quarter of an hour.
# As root; takes debootstrap and qemu-user-static, and Debian's packages and pip's index.
#
#   deploy/onefile/foreign.sh ARCH [DIRECTORY]      default: dist
set -euo pipefail
cd "$(dirname "$0")/../.."
machine=$1
directory=${2:-dist}
case $machine in
aarch64) architecture=arm64 ;;
x86_64) architecture=amd64 ;;
*) echo "foreign.sh: no architecture $machine: aarch64, x86_64" >&2 && exit 2 ;;
esac

if [ "$(uname -m)" != "$machine" ] && [ ! -e "/proc/sys/fs/binfmt_misc/qemu-$machine" ]; then
    echo "foreign.sh: this machine does not run programs of $machine. Debian: apt-get install" \
        "debootstrap qemu-user-static; where nothing has mounted binfmt_misc:" \
        "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && /usr/lib/systemd/systemd-binfmt" >&2
    exit 1
fi

root=$(mktemp --directory --tmpdir mayfly-dist-XXXXXX)
trap 'rm -rf --one-file-system "$root"' EXIT
packages=binutils,ca-certificates,gcc,libc6-dev,make,python3-venv
debootstrap --variant=minbase --arch="$architecture" --include="$packages" bookworm "$root"

# pip reaches its index as this machine's does. A directory of wheels is not there.
cp /etc/resolv.conf "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
if [ -e /etc/pip.conf ]; then
    cp /etc/pip.conf "$root/etc/"
fi
mkdir "$root/src"
git ls-files -z | tar --null --files-from=- --create | tar --extract --directory="$root/src"
settings=(HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin)
while IFS= read -r line; do
    settings+=("$line")
done < <(env | grep -Ei '^(pip_|(https?|no)_proxy=)' | grep -v ^PIP_FIND_LINKS= || true)
# shellcheck disable=SC2016  # the inner shell expands it
unshare --mount --pid --fork --kill-child env --ignore-environment "${settings[@]}" \
    sh -c 'mount -t proc proc "$1/proc" && exec chroot "$1" make -C /src dist' sh "$root"
mkdir -p "$directory"
cp "$root"/src/dist/mayfly-*-linux-"$machine"* "$directory/"
