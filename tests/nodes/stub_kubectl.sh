#!/bin/sh
# kubectl for tests: a cluster of files in $STUB_STATE. Runs no pod; the end of one depends on
# how its node's name begins. All arguments are in the file `arguments`, the objects in `objects`.
cd "$STUB_STATE" || exit 1
printf '%s\n' "$*" >>arguments
fail() { echo "$1" >&2; exit 1; }
node_of() { sed -n 's/^ *"nodeName": "\(.*\)",$/\1/p' "pods/$1"; }
node() { # name
    ready=True
    case $1 in none*) return ;; gone*) [ ! -e "lost-$1" ] || return 0 ;; notready* | lost*) ready=False ;; esac
    [ "${1#lost}" = "$1" ] || [ -e "lost-$1" ] || ready=True
    printf '%s{"kind": "Node", "metadata": {"name": "%s"}, "status": {"conditions": ' "$comma" "$1"
    printf '[{"type": "Ready", "status": "%s", "message": "kubelet is gone"}], ' "$ready"
    printf '"nodeInfo": {"operatingSystem": "linux", "architecture": "amd64", "osImage": "Debian"}, '
    printf '"images": [{"names": ["a.example/pause:3", "a.example/pause@sha256:x"], "sizeBytes": 9}, '
    printf '{"names": ["a.example/small:1"], "sizeBytes": 5}]}}'
    comma=', '
}
state() { # name
    on=$(node_of "$1")
    ended='"terminated": {"exitCode": 0, "reason": "Completed"}'
    case $on in
        noshell*) ended='"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: \"/bin/sh\": stat /bin/sh: no such file"}' ;;
        noimage*) ended='"waiting": {"reason": "ErrImageNeverPull", "message": "not there"}' ;;
        oom*) ended='"terminated": {"exitCode": 137, "reason": "OOMKilled"}' ;;
        pending*) printf '"phase": "Pending"'; return ;;
        slow*) [ -e "read-$1" ] || ended='"running": {}' ;;
        hang* | lost* | gone*) ended='"running": {}'; : >"lost-$on" ;;
        evicted*) printf '"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."'; return ;;
    esac
    # A sidecar that somebody has put into every pod is first.
    printf '"phase": "Running", "containerStatuses": [{"name": "proxy", "state": {"running": {}}}, '
    printf '{"name": "script", "state": {%s}}]' "$ended"
}
pod() { # name
    [ -e "pods/$1" ] || return 0
    printf '%s{"kind": "Pod", "metadata": {"name": "%s"}, "spec": {"nodeName": "%s"}, "status": {%s}}' \
        "$comma" "$1" "$(node_of "$1")" "$(state "$1")"
    comma=', '
}
comma=
if [ "$1" = --context ]; then shift 2; fi
[ ! -e "hang-$1" ] || exec sleep 1000
case $1 in
    create | apply)
        [ ! -e forbidden ] || fail 'Error from server (Forbidden): namespaces is forbidden'
        mkdir -p pods
        created=created-$$
        cat >"$created"
        cat "$created" >>objects
        name=$(sed -n 's/^ *"name": "\(script-[0-9]*\)",$/\1/p' "$created" | tail -n 1)
        namespace=$(sed -n 's/^ *"name": "\(mayfly-prefetch-[0-9a-f]*\)",$/\1/p' "$created" | head -n 1)
        if [ -n "$name" ]; then mv "$created" "pods/$name"; else printf '%s' "$namespace" >namespace; fi ;;
    get)
        case $2 in
            node) node "$3" ;;
            namespaces)
                printf '{"items": ['
                for one in $(cat others namespace 2>/dev/null); do
                    printf '%s{"kind": "Namespace", "metadata": {"name": "%s"}}' "$comma" "$one"
                    comma=', '
                done
                echo ']}' ;;
            events) echo '{"items": []}' ;;
            pods)
                printf '{"items": ['
                for one in pods/*; do [ ! -e "$one" ] || pod "${one#pods/}"; done
                echo ']}' ;;
            *)
                printf '{"items": ['
                for one in "$@"; do
                    case $one in pod/*) pod "${one#pod/}" ;; node/*) node "${one#node/}" ;; esac
                done
                echo ']}' ;;
        esac ;;
    logs)
        [ ! -e forbidden-logs ] || fail 'Error from server (Forbidden): cannot get resource "pods/log"'
        on=$(node_of "$2")
        case $on in
            hang* | lost* | gone*) exec sleep 1000 ;;
            slow*)
                # The first reading is cut.
                if [ ! -e "cut-$2" ]; then : >"cut-$2"; fail 'error: connection reset'; fi
                : >"read-$2" ;;
        esac
        sed -n 's/^ *"script": "\(.*\)"$/\1/p' "pods/$2" | sed 's/\\n/\n/g' >"script-$2"
        "${0%/*}/ssh" -- "$on" "sh -s -- --json --progress" <"script-$2" 2>&1
        exit 0 ;;
    delete)
        [ ! -e undeletable ] || fail 'Error from server (Timeout): the server is busy'
        case "$*" in
            *"pods --all"*"--force"*) rm -f pods/* ;;
            *"pods --all"*)
                for one in pods/*; do
                    [ -e "$one" ] || continue
                    case $(node_of "${one#pods/}") in lost*) fail 'error: timed out' ;; esac
                    rm "$one"
                done ;;
            *namespace*) rm -f namespace ;;
            *pod/*)
                for one in "$@"; do
                    case $one in pod/*) case $(node_of "${one#pod/}") in lost*) ;; *) rm -f "pods/${one#pod/}" ;; esac ;; esac
                done ;;
        esac ;;
esac
