
# ---- The end of the script of `mayfly wait --safe-to-stop`: read, and change nothing --------------

tell() { printf 'mayfly-kubelet %s\n' "$*"; }

# Print a file as one line, as far as it may be one of kubelet's.
tell_file() { # key file
    content=$(head -c 65536 "$2" | tr '\n\r\t' '   ') && tell "$1" "$content"
}

# Print the number of a process's namespace.
namespace_of() { # directory of the process, kind of namespace
    readlink "$1/ns/$2"
}

# Print the number of the node's own namespace: that of its first process; where nobody may read
# that, as in a machine that is a container, that of this script.
own_namespace() { # kind of namespace
    namespace_of "$tree/proc/1" "$1" || namespace_of "$tree/proc/self" "$1"
}

# Whether a process runs as root, by all of its user IDs.
is_root() { # directory of the process
    while read -r key user effective saved files rest; do
        [ "$key" = Uid: ] || continue
        [ "$user $effective $saved $files$rest" = "0 0 0 0" ]
        return
    done <"$1/status"
    return 1
}

# Set own to the directories of kubelet's processes, several while one only prints its version, and
# apart to those of processes with this name that have other mounts than the node: a kubelet whose
# service has some of its own, or programs of pods. Pods may start many of them, so the cheapest
# question comes first.
find_kubelet() {
    own=
    apart=
    own_pid=$(own_namespace pid)
    own_mnt=$(own_namespace mnt)
    for one in "$tree"/proc/[0-9]*; do
        { read -r name <"$one/comm" && [ "$name" = kubelet ] && is_root "$one"; } || continue
        # One of a pod has its own processes.
        [ "$(namespace_of "$one" pid)" = "${own_pid:--}" ] || continue
        if [ "$(namespace_of "$one" mnt)" = "${own_mnt:--}" ]; then
            own="$own $one"
        else
            apart="$apart $one"
        fi
    done
} 2>/dev/null

# Print the value of a process's flag: of several the last one counts, and `_` is the same as `-`, as
# in kubelet.
flag_of() { # directory of the process, name
    tr '\0' '\n' <"$1/cmdline" | awk -v flag="$2" '
        wanted { value = $0; wanted = 0; next }
        { name = $0; sub(/=.*/, "", name); gsub(/_/, "-", name) }
        name != flag { next }
        /=/ { value = $0; sub(/^[^=]*=/, "", value); next }
        { wanted = 1 }
        END { if (NR == 0) exit 1; print value }'
}

# Print the directory of a kubelet. 1 if it has ended.
root_of() { # directory of the process
    root=$(flag_of "$1" --root-dir) || return
    printf '%s' "${root:-/var/lib/kubelet}"
}

# Print the directories in which a kubelet listens, whatever program it is part of, as in k3s. It binds
# a temporary name and then renames the file, and the kernel shows the first name. Sockets without a
# file, whose names begin with "@", are none of kubelet's.
listening() {
    sed -n 's|^[^/@]* \(/.*\)/pod-resources/[^/]*$|\1|p' "$tree/proc/net/unix" 2>/dev/null | sort -u
}

tell_records() {
    listens=$(listening)
    if [ -z "$own$apart$listens" ] && ! has_kubelet; then
        tell kubelet no
        return
    fi
    tell kubelet yes
    # One that is part of another program has no flags to read: any other directory may be a pod's.
    directory=
    [ -n "$own" ] || directory=/var/lib/kubelet
    # The node's kubelet may be any of these. Its directory has the same path for the runtime, which
    # mounts volumes of pods from it.
    for one in $own $apart; do
        other=$(root_of "$one") && [ "${directory:-$other}" = "$other" ] || return
        directory=$other
    done
    # A process that only prints its version listens nowhere, and a kubelet that listens elsewhere may
    # be the node's.
    [ -n "$listens" ] && [ "$listens" = "${directory%/}" ] || return
    directory=$tree$directory
    # A kubelet that keeps records makes it when it starts: without it, this one keeps none, or has
    # another directory.
    [ -d "$directory/image_manager/pulled" ] || return
    count=0
    for kind in pulled pulling; do
        for one in "$directory/image_manager/$kind"/*; do
            # kubelet makes no links: not all could be told.
            [ ! -L "$one" ] || return
            [ -f "$one" ] || continue
            tell_file "$kind" "$one" || return
            count=$((count + 1))
        done
    done
    # A log that was rotated lacks lines.
    tell records "$count"
}

# Print the endpoint by which a kubelet manages images, where flags name it: those of the node's
# kubelet, or of all that may be it.
endpoint_of_flags() {
    first=yes
    found=
    for one in ${own:-$apart}; do
        endpoint=$(flag_of "$one" --image-service-endpoint) || return
        endpoint=${endpoint:-$(flag_of "$one" --container-runtime-endpoint)}
        [ "$first" = yes ] || [ "$found" = "$endpoint" ] || return
        first=no
        found=$endpoint
    done
    printf '%s' "${found#unix://}"
}

# Show the images of the runtime that the node's kubelet uses. A node may have several, also two of
# one kind, such as docker's containerd beside that of kubelet.
tell_images() {
    has crictl || return
    # Of its configuration, as the cluster showed it.
    set -- "${kubelet_endpoint:-$(endpoint_of_flags)}"
    if [ -n "$1" ]; then
        tell endpoint known
    else
        found_containerd || address=
        set -- "${CONTAINERD_ADDRESS:-}" "$address" /var/run/crio/crio.sock /run/cri-dockerd.sock
    fi
    for socket in "$@"; do
        [ -S "${socket:-/}" ] || continue
        listed=$(bounded 60 crictl -r "unix://$socket" -i "unix://$socket" images -o json \
            2>/dev/null) || continue
        tell runtime "$(bounded 20 crictl -r "unix://$socket" version | sed -n 's/^RuntimeName: *//p')"
        tell images "$(printf '%s' "$listed" | tr -s ' \n\r\t' ' ')"
        return
    done
}

look_at_kubelet() {
    PATH=$PATH:/usr/local/bin:/usr/local/sbin:/var/lib/rancher/rke2/bin:/opt/bin
    tell user "$(id -u)"
    tell boot "$(cat "$tree/proc/sys/kernel/random/boot_id" 2>/dev/null)"
    find_kubelet
    tell_records
    tell_images
    tell "done" yes
}

# A shell that reads this from its input would wait for more of it.
{ look_at_kubelet </dev/null; exit 0; }
