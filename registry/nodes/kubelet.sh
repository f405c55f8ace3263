
# ---- The end of the script of `mayfly wait --safe-to-stop`: read, and change nothing --------------

tell() { printf 'mayfly-kubelet %s\n' "$*"; }

# Print a file as one line, as far as it may be one of kubelet's.
tell_file() { # key file
    content=$(head -c 65536 "$2" | tr '\n\r\t' '   ') && tell "$1" "$content"
}

# Whether a process is in the same namespace as the node's first one.
shares() { # directory of the process, kind of namespace
    own=$(readlink "$tree/proc/1/ns/$2") && [ -n "$own" ] && [ "$(readlink "$1/ns/$2")" = "$own" ]
}

# Set kubelet to the directory of its process, and apart to those of processes with this name that
# have other mounts than the node: a kubelet whose service has some of its own, or programs of pods.
find_kubelet() {
    kubelet=
    apart=
    for one in "$tree"/proc/[0-9]*; do
        { read -r name <"$one/comm" && [ "$name" = kubelet ]; } || continue
        [ "$(awk '$1 == "Uid:" && NF == 5 { print $2 + $3 + $4 + $5 }' "$one/status")" = 0 ] ||
            continue
        shares "$one" pid || continue
        if shares "$one" mnt; then kubelet=${kubelet:-$one}; else apart="$apart $one"; fi
    done 2>/dev/null
}

# Print the value of a flag of a process.
flag_of() { # directory of the process, name
    tr '\0' '\n' <"$1/cmdline" | awk -v flag="$2" '
        wanted { print; exit }
        index($0, flag "=") == 1 { print substr($0, length(flag) + 2); exit }
        $0 == flag { wanted = 1 }'
}

# Print the directory of a kubelet; the usual one, if its process is not known.
root_of() { # directory of the process
    root=
    [ -z "$1" ] || root=$(flag_of "$1" --root-dir)
    printf '%s' "${root:-/var/lib/kubelet}"
}

tell_records() {
    if [ -z "$kubelet$apart" ] && ! has_kubelet; then
        tell kubelet no
        return
    fi
    tell kubelet yes
    # Another program may contain kubelet, as k3s does: it listens in its directory.
    [ -n "$kubelet$apart" ] ||
        grep -q ' /var/lib/kubelet/pod-resources/kubelet\.sock$' "$tree/proc/net/unix" 2>/dev/null ||
        return
    directory=$(root_of "$kubelet")
    # The node's kubelet may be one of these. Its directory has the same path for the runtime, which
    # mounts volumes of pods from it.
    for one in $apart; do
        [ "$(root_of "$one")" = "$directory" ] || return
    done
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

tell_images() {
    has crictl || return
    endpoint=
    [ -z "$kubelet" ] || endpoint=$(flag_of "$kubelet" --container-runtime-endpoint)
    found_containerd || address=
    for socket in "${endpoint#unix://}" "${CONTAINERD_ADDRESS:-}" "$address" \
        /var/run/crio/crio.sock /run/cri-dockerd.sock
    do
        [ -n "$socket" ] && [ -S "$socket" ] || continue
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
    find_kubelet
    tell_records
    tell_images
    tell "done" yes
}

# A shell that reads this from its input would wait for more of it.
{ look_at_kubelet </dev/null; exit 0; }
