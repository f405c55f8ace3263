#!/bin/sh
# ssh for tests: what a node does depends on how its name begins. Runs nothing of what it is given,
# but reads it; what ran when is in $STUB_STATE/log.
while [ "$1" != -- ]; do shift; done
node=$2
command=$3
printf 'begin %s %s\n' "$node" "$$" >>"$STUB_STATE/log"
# Its input stays open after the script.
script=$(sed '/^{ main/q')
printf '%s\n' "$command" >>"$STUB_STATE/commands"
tries=$(($(cat "$STUB_STATE/tries-$node" 2>/dev/null || echo 0) + 1))
echo "$tries" >"$STUB_STATE/tries-$node"
images=$(printf '%s\n' "$script" | sed -n "/^images='/,/'\$/p" | sed "s/^images='//; s/'\$//; s/ .*//")
end() { printf 'end %s %s\n' "$node" "$$" >>"$STUB_STATE/log"; exit "$1"; }
die() { printf '%s\n' "$2" >&2; end "$1"; }
answer() { # present proof time config_path
    rows=
    for one in $images; do
        [ -z "$2" ] || printf '{"image": "%s", "state": "%s"}\n' "$one" \
            "$([ "$1" = true ] && echo pulled || echo failed)"
        rows="$rows${rows:+, }{\"image\": \"$one\", \"present\": $1, \"pinned\": $1}"
    done
    printf '{"node": "%s", "proof": "%s", "images": [%s], "time": %s, "free": 5, ' \
        "$node" "$2" "$rows" "$3"
    printf '"config_path": "%s", "report": {%s}}\n' "${4:-yes}" "${report:-}"
}
not_pulled() {
    for one in $images; do printf 'mayfly: %s: not pulled: %s\n' "$one" "$1" >&2; done
    answer false sent "${2:-$(date +%s)}"
    end 3
}
of_script() { printf '%s\n' "$script" | sed -n "s/^$1='\(.*\)'\$/\1/p" | head -n 1; }
ask() { # path arguments...
    path=$(of_script node_path)/$1
    shift
    curl -qsSf -H "Authorization: $(of_script authorization)" "$@" "$(of_script url)$path"
}
list_digests() { # sets entries to the images of $STUB_STATE/digests
    entries=
    while read -r digest; do
        entries="$entries${entries:+, }{\"image\": \"x\", \"digest\": \"$digest\", \
\"runtime\": \"docker\", \"time\": $(date +%s), \"pinned\": true, \"free\": 5}"
    done <"$STUB_STATE/digests"
}
prove() {
    nonce=$(ask nonce | sed 's/.*"nonce": *"\([0-9a-f]*\)".*/\1/')
    list_digests
    ask proof --data "{\"version\": 1, \"nonce\": \"$nonce\", \"images\": [$entries]}" >/dev/null
}
case $node in
    later*) [ -e "$STUB_STATE/go" ] || exec sleep 1000; prove || end 3; answer true sent "$(date +%s)"; end 0 ;;
    prints* | cannot*)
        list_digests
        report="\"version\": 1, \"nonce\": \"\", \"images\": [$entries]"
        if [ "${node#cannot}" = "$node" ]; then answer true printed "$(date +%s)"; end 0; fi
        echo "mayfly: the registry did not take the proof: curl: (7) Failed to connect to r" >&2
        answer true refused "$(date +%s)"
        end 3 ;;
    proves*) prove || end 3; answer true sent "$(date +%s)"; end 0 ;;
    good*) answer true sent "$(date +%s)"; end 0 ;;
    slow*) sleep 0.3; answer true sent "$(date +%s)"; end 0 ;;
    hang*) exec sleep 1000 ;;
    busy*) die 1 "mayfly: another run of this script is at work here; try again when it is done" ;;
    down*) die 255 "ssh: connect to host $node port 22: Connection refused" ;;
    passing*)
        [ "$tries" -ge 3 ] || die 255 "ssh: connect to host $node port 22: No route to host"
        answer true sent "$(date +%s)"; end 0 ;;
    killed*) die 137 "mayfly: something before" ;;
    lost*) echo "note: something before" >&2; end 255 ;;
    full*) not_pulled "write /x: no space left on device" ;;
    clock*) not_pulled "x509: certificate has expired or is not yet valid: now" 1000000 ;;
    ahead*) answer true sent 9000000000; end 0 ;;
    nopath*) answer true sent "$(date +%s)" no; end 0 ;;
    unpinned*)
        for one in $images; do printf 'mayfly: %s: pulled, but not pinned: why\n' "$one" >&2; done
        answer true sent "$(date +%s)"; end 3 ;;
    noproof*) answer true printed "$(date +%s)"; end 0 ;;
    noise*)
        echo "Welcome!"
        head -c 300000 /dev/zero | tr '\0' x
        echo; answer true sent "$(date +%s)"; end 0 ;;
    endless*)
        answer true sent "$(date +%s)"
        while :; do
            printf '{"image": "%s", "state": "pulled"}\n{"\n\n{"image": "x"}\n' "${images%%
*}"
            echo x >&2
        done ;;
    flood*)
        head -c 2000000 /dev/zero | tr '\0' '{'
        head -c 2000000 /dev/urandom >&2
        end 0 ;;
    hostile*)
        printf '\033[2J\033[31mred\r\n\342\200\256reversed\n' >&2
        printf '{"image": "\\u001b[2J", "state": "pulled"}\n{"report": {}, "proof": "\\u001b"}\n'
        die 1 "$(printf 'mayfly: \033[2Jcleared')" ;;
esac
