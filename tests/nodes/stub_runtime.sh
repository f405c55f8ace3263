#!/bin/sh
# A node's docker, podman, ctr, crictl or curl, by the name it is called by, for tests: images are
# files img-* in $STUB_STATE, pins are files pin-*, and all arguments are in the file `arguments`.
[ -z "${STUB_PATH:-}" ] || PATH=$STUB_PATH
name=${0##*/}
: "${STUB_STATE:?}"
printf '%s %s\n' "$name" "$*" >>"$STUB_STATE/arguments"
file() {
    rest=$2
    while [ "$rest" != "${rest#*/}" ]; do rest=${rest%%/*}_${rest#*/}; done
    printf '%s/%s-%s' "$STUB_STATE" "$1" "$rest"
}
is_in() { grep -qxF "$2" "$STUB_STATE/$1" 2>/dev/null; }
last() { for one in "$@"; do :; done; printf '%s' "$one"; }
digest() {
    known=$(sed -n "s|^$1 ||p" "$STUB_STATE/digests" 2>/dev/null)
    if [ -n "$known" ]; then printf '%s' "$known"; return; fi
    printf 'sha256:%s' "$(printf '%s' "$1" | sha256sum | cut -c 1-64)"
}
pull() {
    if is_in broken "$1"; then
        cat "$STUB_STATE/message" >&2 2>/dev/null || echo "no such image" >&2
        exit 1
    fi
    left=$(cat "$STUB_STATE/fail" 2>/dev/null || echo 0)
    if [ "$left" -gt 0 ]; then echo $((left - 1)) >"$STUB_STATE/fail"; echo later >&2; exit 1; fi
    : >"$(file img "$1")"
}
[ ! -e "$STUB_STATE/dead" ] || exit 1
case $name in
    curl)
        config=$(cat)
        case $config in
            *'/nonce"'*) echo '{"nonce": "abc123", "expires_in": 600}' ;;
            *) body=$(printf '%s\n' "$config" | sed -n 's/^data-binary = "@\(.*\)"$/\1/p')
               cat "$body" >"$STUB_STATE/proof" ;;
        esac ;;
    crictl)
        case " $* " in
            *" pull "*) pull "$(last "$@")" ;;
            *" inspecti "*)
                [ -e "$(file img "$(last "$@")")" ] || exit 1
                pinned=false
                if [ -e "$(file pin "$(last "$@")")" ] && [ ! -e "$STUB_STATE/no-pins" ]; then
                    pinned=true
                fi
                printf '{"status": {"pinned": %s}}\n' "$pinned" ;;
        esac ;;
    ctr)
        reference=$(last "$@")
        case " $* " in
            *" version "*) printf 'Client:\n  Version: v2.4.2\nServer:\n  Version:  v2.4.2\n' ;;
            *" images pull "*) pull "$reference" ;;
            *" images check "*)
                reference=${reference#name==}
                printf 'REF TYPE DIGEST STATUS SIZE UNPACKED\n'
                [ -e "$(file img "$reference")" ] || exit 0
                unpacked=true status='complete (2/2)'
                if is_in lost-snapshot "$reference"; then unpacked=false; fi
                if is_in lost-content "$reference"; then status='incomplete (1/2)'; fi
                printf '%s application/x %s %s 1.0 B/1.0 B %s\n' "$reference" \
                    "$(digest "$reference")" "$status" "$unpacked" ;;
            *" images ls -q "*)
                [ ! -e "$(file img "${reference#name==}")" ] || echo "${reference#name==}" ;;
            *" images ls "*)
                [ ! -e "$(file pin "${reference#name==}")" ] || echo io.cri-containerd.pinned=pinned ;;
            *" images label "*)
                if is_in unlabelled "$7"; then echo "label: no" >&2; exit 1; fi
                case $reference in
                    *=pinned)
                        shift 6
                        [ -e "$(file img "$1")" ] && : >"$(file pin "$1")" ;;
                    *) shift 6; rm -f "$(file pin "$1")" ;;
                esac ;;
            *" images rm "*)
                if is_in unremovable "$reference"; then echo "rm: no" >&2; exit 1; fi
                rm -f "$(file img "$reference")" ;;
            *" containers ls "*) echo "c1 $(cat "$STUB_STATE/in-use" 2>/dev/null) x" ;;
        esac ;;
    *)
        reference=$(last "$@")
        case " $* " in
            *" info -f "*) echo / ;;
            *" pull "*) pull "$reference" ;;
            *" tag "*) : >"$(file img "$reference")" ;;
            *" rmi "*)
                if is_in unremovable "$reference"; then echo "rmi: no" >&2; exit 1; fi
                if [ ! -e "$(file img "$reference")" ]; then echo "rmi: none" >&2; exit 1; fi
                rm -f "$(file img "$reference")" ;;
            *" images -q "*) [ ! -e "$(file img "$reference")" ] || digest "$reference" ;;
            *" image exists "*) [ -e "$(file img "$reference")" ] ;;
            *" image inspect "*)
                [ -e "$(file img "$reference")" ] || exit 1
                case " $* " in
                    *GraphDriver*) echo / ;;
                    *) if [ "$name" = podman ]; then digest "$reference" | cut -c 8-; else digest "$reference"; echo; fi ;;
                esac ;;
        esac ;;
esac
