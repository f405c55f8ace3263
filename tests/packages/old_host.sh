# shellcheck shell=sh
# Runs in a root of an old Debian without Python, with a network of its own that has loopback alone:
# /upgrade.run carries its images to docker and containerd over TLS. Its output is the test's.
set -eu
cd /upgrade
# What the run needs is in the file: nothing may be unpacked into /tmp, and there is no HOME.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o noexec tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
unset HOME
for program in python python3; do
    ! command -v "$program" || exit 1
done
containerd >/containerd.log 2>&1 &
daemons=$!
dockerd --bridge=none --iptables=false --storage-driver=vfs >/docker.log 2>&1 &
daemons="$daemons $!"
# shellcheck disable=SC2086  # a list
trap 'kill $daemons; wait' EXIT
left=120
until docker info >/dev/null 2>&1 && ctr version >/dev/null 2>&1; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || { cat /docker.log /containerd.log; exit 1; }
    sleep 1
done
docker version --format 'docker {{.Server.Version}}'
ctr version | sed -n 's/.*Version: */containerd /p' | tail -n 1
find / -xdev -path /var/lib/docker -prune -o -path /var/lib/containerd -prune -o -print | sort >/before
/upgrade.run --state-dir /state --root /root/store
find / -xdev -path /var/lib/docker -prune -o -path /var/lib/containerd -prune -o -print | sort >/after
docker image ls --format 'docker has {{.Repository}}:{{.Tag}}'
ctr --namespace k8s.io images ls --quiet | sed -n 's/^/containerd has /p'
comm -13 /before /after | sed -n 's/^/made /p'
find /tmp -mindepth 1 | sed -n 's/^/left /p'
