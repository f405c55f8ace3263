#!/bin/sh
# shellcheck disable=SC2317 # main ends by exit
# Mayfly, on one node: trust the registry, pull and pin the images of an upgrade, prove that they
# are there, and take all of it back. For dash, bash and busybox ash; needs no Mayfly on the node.
#
# apply trust and mirror files; replaced files are saved
#   pull     pull and pin every image
#   verify   look for every image, and tell the registry
# unpin [--keep FILE] [--prune]: unpin this script's pins, but for the names in FILE
#            (full ones, with tag or digest, as this script prints them)
#   revert   unpin, and put every file back
#   status   print all that, and change nothing
#
# Without a verb: apply, pull, verify. Options: --quiet, --json, --progress (with --json: a line for
# each image that was pulled), --force, --runtime NAME, --attended (end, as after a signal, when
# standard input ends: a connection may break, and the command that needs this may be killed).
#
# It may be run again at any time, also after it was killed: each step replaces one name on disk,
# and the journal (the one of "mayfly node-config") is written before the change. Secrets are in
# files of mode 0600 below $base and in this script, never in the arguments of a program.

set -u
umask 077
export LC_ALL=C

# The operator's data begins here.
#@DATA@
# The operator's data ends here.

base=$tree/var/lib/mayfly-node-config
work=$base/work
quiet=no
json=no
progress=no
attended=no
force=no
prune=no
keep=
kept_names=
failures=0
proof_state=none
address=
rancher=
above=
written=
restored=
workers=
watcher=
tab=$(printf '\t')
backslash=$(printf '\134')
newline='
'

say() { [ "$quiet" = yes ] || [ "$json" = yes ] || printf '%s\n' "$*"; }
note() { printf 'note: %s\n' "$*" >&2; }
warn() { printf 'mayfly: %s\n' "$*" >&2; }
die() { warn "$2"; exit "$1"; }
failed() { die 1 "$1: cannot be written or removed; mend that and run this again"; }
set_text() { printf '%s' "$2" >"$1" || failed "$1"; }
add_line() { printf '%s\n' "$2" >>"$1" || failed "$1"; }
has() { command -v "$1" >/dev/null 2>&1; }
is_gnu() { "$1" --version 2>/dev/null | grep -q GNU; }
sha_of() { sum=$(sha256sum <"$1") && printf '%s' "${sum%% *}"; }
# Some syncs know no names and write all out.
flush() { if [ "$syncs_files" = yes ]; then sync "$1"; else sync; fi; }

# Of a long line print the begin, and the end, where programs name the cause.
shorten() {
    awk '{ n = length($0) }
        n > 300 { print substr($0, 1, 96) " ... " substr($0, n - 198); next }
        { print }'
}

# The command that bounds the time of another; empty without such a program.
bound=
if timeout -k 1 1 true 2>/dev/null; then
    bound='timeout -k 10'
elif timeout 1 true 2>/dev/null; then
    bound=timeout
fi

# Run a command for a number of seconds at most, where the system can do that.
bounded() {
    limit=$1
    shift
    # busybox's leaves a process behind until the time is over: not with the lock.
    # shellcheck disable=SC2086 # words
    ${bound:+$bound "$limit"} "$@" 9<&-
}

# ---- Files: the journal, and one file at a time -------------------------------------------------

journal_of() { printf '%s/%s' "$base" "$runtime"; }

# Print a journal as lines of fields: E path kind content mode uid gid mtime xattrs written, D path.
journal_lines() {
    # The layout is that of Python's json.dumps(indent=1); a backslash would be an escape.
    if grep -qF "$backslash" "$1"; then return 1; fi
    awk '
        function text(s) { sub(/^ *"/, "", s); sub(/",?$/, "", s); return s }
        function value(s) { sub(/^[^:]*: /, "", s); sub(/,$/, "", s); gsub(/"/, "", s); return s }
        BEGIN { version = "" }
        /^ "version": / { version = value($0) }
        /^  "\/.*": \{$/ {
            path = $0; sub(/^  "/, "", path); sub(/": \{$/, "", path)
            kind = content = mode = uid = gid = mtime = xattrs = written = "-"
        }
        /^    "kind": / { kind = value($0) }
        /^    "content": / { content = value($0); if (content == "") content = "-" }
        /^    "mode": / { mode = value($0) }
        /^    "owner": \[$/ { getline; uid = value("x: " $0); sub(/^ */, "", uid)
                              getline; gid = value("x: " $0); sub(/^ */, "", gid) }
        /^    "mtime_ns": [0-9]/ { mtime = value($0) }
        /^    "xattrs": \{$/ { inside = 1; xattrs = ""; next }
        inside && /^    \}/ { inside = 0 }
        inside { one = $0; sub(/^ *"/, "", one); sub(/": "/, "=", one); sub(/",?$/, "", one)
                 xattrs = xattrs one " " }
        /^   "written": \[$/ { listing = 1; written = ""; next }
        listing && /^   \]/ {
            listing = 0
            printf "E\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", \
                path, kind, content, mode, uid, gid, mtime, xattrs, written
        }
        listing { written = written text($0) " " }
        /^ "directories": \[$/ { directories = 1; next }
        directories && /^ \]/ { directories = 0 }
        directories { printf "D\t%s\n", text($0) }
        END { if (version != "1") exit 1 }
    ' "$1"
}

# Make the text of a journal from such lines.
journal_text() {
    awk -F '\t' '
        function quoted(list, indent,    parts, n, i, out) {
            n = split(list, parts, " "); out = ""
            for (i = 1; i <= n; i++)
                out = out indent "\"" parts[i] "\"" (i < n ? "," : "") "\n"
            return out
        }
        $1 == "E" { entries[++count] = $0 }
        $1 == "D" { directories = directories $2 " " }
        END {
            printf "{\n \"version\": 1,\n \"entries\": {\n"
            for (i = 1; i <= count; i++) {
                split(entries[i], f, "\t")
                printf "  \"%s\": {\n   \"original\": {\n    \"kind\": \"%s\",\n", f[2], f[3]
                printf "    \"content\": \"%s\",\n    \"mode\": \"%s\",\n", \
                    (f[4] == "-" ? "" : f[4]), f[5]
                if (f[6] == "-") printf "    \"owner\": null,\n"
                else printf "    \"owner\": [\n     %s,\n     %s\n    ],\n", f[6], f[7]
                printf "    \"mtime_ns\": %s,\n", (f[8] == "-" ? "null" : f[8])
                n = split((f[9] == "-" ? "" : f[9]), x, " ")
                if (n == 0) printf "    \"xattrs\": {}\n"
                else {
                    printf "    \"xattrs\": {\n"
                    for (k = 1; k <= n; k++) {
                        at = index(x[k], "=")
                        printf "     \"%s\": \"%s\"%s\n", substr(x[k], 1, at - 1), \
                            substr(x[k], at + 1), (k < n ? "," : "")
                    }
                    printf "    }\n"
                }
                printf "   },\n   \"written\": [\n%s   ]\n  }%s\n", \
                    quoted(f[10], "    "), (i < count ? "," : "")
            }
            printf " },\n"
            if (directories == "") printf " \"directories\": []\n}\n"
            else printf " \"directories\": [\n%s ]\n}\n", quoted(directories, "  ")
        }
    '
}

# Set kind, content, mode, uid, gid, mtime and xattrs to those of the file at a path now.
look() {
    kind=absent content=- mode=0000 uid=- gid=- mtime=- xattrs=-
    if [ -L "$1" ]; then
        kind='link'
        content=$(readlink "$1") || die 1 "$1: cannot be read"
        case $content in '' | *[!A-Za-z0-9/._:@+-]*) die 2 "$1: move this link away first" ;; esac
        look_closer "$1"
        mode=0000 mtime=-
    elif [ -f "$1" ]; then
        kind='file'
        content=$(sha_of "$1") || die 1 "$1: cannot be read"
        look_closer "$1"
        if has getfattr; then
            xattrs=$(getfattr -h -d -m - -e base64 --absolute-names "$1" 2>/dev/null |
                sed -n 's/^\([A-Za-z0-9._-]*\)=0s\(.*\)$/\1=\2/p' | tr '\n' ' ')
        fi
        [ -n "$xattrs" ] || xattrs=-
    elif [ -e "$1" ]; then
        die 2 "$1: is neither a file nor a link; move it away first"
    fi
}

# Set mode, uid, gid and mtime: in nanoseconds, where stat has them.
look_closer() {
    found=$(stat -c '%u %g %a %Y %y' "$1") || die 1 "$1: cannot be read"
    # shellcheck disable=SC2086 # numbers; the last words are a date, a time with a fraction, a zone
    set -- $found
    fraction=${6#*.}
    case $fraction in *[!0-9]*) fraction=000000000 ;; esac
    [ ${#fraction} -eq 9 ] || fraction=000000000
    uid=$1 gid=$2 mode=$(printf '%04o' "0$3") mtime=$4$fraction
}

# The entry of a path in the journal; empty without one.
entry_of() { awk -F '\t' -v path="$1" '$1 == "E" && $2 == path' "$2"; }

# Set the fields of an entry.
read_entry() {
    set -f
    IFS=$tab
    # shellcheck disable=SC2086 # no field is empty
    set -- $1
    unset IFS
    set +f
    path=$2 kind=$3 content=$4 mode=$5 uid=$6 gid=$7 mtime=$8 xattrs=$9
}

# Give a new file its place, by one rename; if that fails, end; the old file is unchanged then.
put_file() { # content-file path mode [uid gid] [mtime] [xattrs]
    directory=${2%/*}
    temporary=$directory/.${2##*/}.mayfly
    if ! make_file "$@" || ! mv -f "$temporary" "$2" || ! flush "$directory"; then
        rm -f "$temporary"
        failed "$2"
    fi
}

make_file() {
    { rm -f "$temporary" && cp "$1" "$temporary"; } || return 1
    # A program that wrote less may not have said so.
    cmp -s "$1" "$temporary" || return 1
    if [ "${4:--}" != - ]; then chown "$4:$5" "$temporary" || return 1; fi
    chmod "$3" "$temporary" || return 1
    if [ "${7:--}" != - ]; then
        for one in $7; do
            setfattr -n "${one%%=*}" -v "0s${one#*=}" "$temporary" 2>/dev/null ||
                warn "$2: attribute ${one%%=*} is lost"
        done
    elif has restorecon && [ -z "$tree" ]; then
        restorecon "$temporary" 2>/dev/null
    fi
    if [ "${6:--}" != - ]; then
        whole=${6%?????????}
        # busybox's knows whole seconds only.
        touch -d "@$whole.${6#"$whole"}" "$temporary" 2>/dev/null ||
            { ! is_gnu touch && touch -d "@$whole" "$temporary"; } || return 1
    fi
    flush "$temporary"
}

# Remove one name.
remove_file() {
    [ -L "$1" ] || [ -e "$1" ] || return 0
    { rm -f "$1" && flush "${1%/*}"; } || failed "$1"
}

# Make one directory for all users, if it is missing.
make_directory() {
    if [ ! -d "$1" ]; then mkdir "$1" || failed "$1"; fi
    chmod 755 "$1" || failed "$1"
}

# Remove a directory if it is empty; 1 if it stays since something is in it.
remove_directory() {
    [ -d "$1" ] || return 0
    rmdir "$1" 2>/dev/null && return 0
    [ -n "$(ls -A "$1")" ] || failed "$1"
    return 1
}

# Directories above a path that are missing, outermost first.
missing_above() {
    [ -n "${1%/*}" ] || return 0
    missing_above "${1%/*}"
    [ -d "$tree${1%/*}" ] || printf 'D\t%s\n' "${1%/*}"
}

# Note one file that this node is to have.
planned() { # mode path content merged
    number=$((number + 1))
    case $2 in *[!][A-Za-z0-9/._:@+-]*) die 2 "$2: this script writes plain paths only" ;; esac
    if [ "$4" = merged ] && [ -e "$tree$2" ] &&
        [ -z "$(entry_of "$2" "$work/old")" ]; then
        note "$2 exists; add to it by hand: $(printf '%s' "$3" | tr '\n' ' ')"
        written="$written $2"
        return
    fi
    set_text "$work/plan/$number" "$3"
    add_line "$work/planned" "$number$tab$1$tab$2"
}

# Whether a file is absent, written by this script, or names the registry; otherwise give a note.
is_free() { # path note
    if [ -e "$tree$1" ] && [ -z "$(entry_of "$1" "$work/old")" ]; then
        grep -qF "$url" "$tree$1" || note "$2"
        return 1
    fi
}

# Whether this node has a CRI-O, and no other file says which images it pins; otherwise give a note.
crio_pins_are_free() { # path of the drop-in
    has crio || return 1
    for file in "$tree/etc/crio/crio.conf" "$tree/etc/crio/crio.conf.d"/*; do
        if [ "$file" != "$tree$1" ] && grep -q '^ *pinned_images' "$file" 2>/dev/null; then
            note "$file says which images CRI-O pins, and CRI-O takes one file only, so these are \
not pinned; mayfly node-config show --for crio --images LIST --merge FILE, with a copy of it as FILE, \
prints the commands that pin both"
            return 1
        fi
    done
}

load_journal() {
    journal=$(journal_of)
    set_text "$work/old" ''
    if [ -f "$journal/journal.json" ]; then
        lines=$(journal_lines "$journal/journal.json") ||
            die 1 "$journal/journal.json: cannot be understood; use: mayfly node-config revert"
        [ -z "$lines" ] || add_line "$work/old" "$lines"
    fi
    if ! has setfattr && awk -F '\t' '$1 == "E" && $9 != "-" { n++ } END { exit !n }' "$work/old"
    then
        die 1 "$journal/journal.json: has extended attributes, and this node has no setfattr; \
use: mayfly node-config revert"
    fi
    take_over
}

# Take over into the journal the files that pasted commands wrote. Their list is removed last, after
# the files of before are saved, so this can be done twice. Files that a paste did not finish are
# also removed.
take_over() {
    [ -f "$journal/pasted" ] || return 0
    set_text "$work/before" ''
    pasted=$(cat "$journal/pasted") || failed "$journal/pasted"
    while read -r letter digest path; do
        case $letter in
            D | B) path=$digest ;;
            F) ;;
            *) continue ;;
        esac
        case $path in
            /*[!][A-Za-z0-9/._:@+-]* | [!/]* | '')
                die 1 "$journal/pasted: cannot be understood; use: mayfly node-config revert"
                ;;
        esac
        if [ "$letter" = D ]; then
            grep -qxF "D$tab$path" "$work/old" || add_line "$work/old" "D$tab$path"
            continue
        fi
        path=${path%.before-mayfly}
        add_line "$work/before" "$path.before-mayfly"
        add_line "$work/before" "${path%/*}/.${path##*/}.mayfly"
        if [ "$letter" = B ]; then continue; fi
        known=$(entry_of "$path" "$work/old") || failed "$work/old"
        case $known in
            '')
                look "$tree$path.before-mayfly"
                if [ "$kind" = file ]; then save_original "$tree$path.before-mayfly"; fi
                case "$kind$newline$pasted$newline" in
                    absent*"${newline}B $path.before-mayfly$newline"*)
                        # Else restored already by a way back that was interrupted.
                        is_pasted "$tree$path" || continue
                        warn "$path.before-mayfly: this copy of the file from before Mayfly is \
gone, so revert removes $path and cannot restore it"
                        ;;
                esac
                entry="E$tab$path$tab$kind$tab$content$tab$mode$tab$uid$tab$gid$tab$mtime"
                add_line "$work/old" "$entry$tab$xattrs$tab$digest "
                ;;
            *"$digest"*) ;;
            *) add_digest "$work/old" ;;
        esac
    done <"$journal/pasted"
    store_journal "$work/old"
    while IFS= read -r path; do remove_file "$tree$path"; done <"$work/before"
    remove_file "$journal/pasted"
}

# Whether a file is as pasted commands wrote it at $path.
is_pasted() { # file
    if [ -L "$1" ] || [ ! -f "$1" ]; then return 1; fi
    found=$(sha_of "$1") || failed "$1"
    case "$newline$pasted$newline" in *"${newline}F $found $path$newline"*) ;; *) return 1 ;; esac
}

# Add $digest to those written at $path, in a file of lines.
add_digest() { # lines
    # An entry keeps its place: files that refer to a CA are restored before the CA.
    lines=$(awk -F '\t' -v path="$path" -v digest="$digest" \
        '{ print $0 ($1 == "E" && $2 == path ? digest " " : "") }' "$1") || failed "$1"
    set_text "$1" "$lines$newline"
}

store_journal() { # lines
    text=$(journal_text <"$1") || failed "$work"
    set_text "$work/journal" "$text$newline"
    if cmp -s "$work/journal" "$journal/journal.json"; then return; fi
    put_file "$work/journal" "$journal/journal.json" 600
    # Its directory may be new, and has to outlive a power cut before anything is changed.
    { flush "$base" && flush "${base%/*}"; } || failed "$journal"
}

# Refuse, before anything is changed, if somebody edited a file of Mayfly.
refuse_edits() { # lines
    [ "$force" = no ] || return 0
    edited=
    while IFS=$tab read -r letter path was content_was mode_was uid_was gid_was _ _ written_was; do
        [ "$letter" = E ] || continue
        look "$tree$path"
        [ "$kind" != absent ] || continue
        if [ "$kind $content" = "$was $content_was" ] &&
            { [ "$kind" = link ] || [ "$mode $uid $gid" = "$mode_was $uid_was $gid_was" ]; }; then
            continue
        fi
        case "$kind $content_was $written_was" in
            file*"$content"*) ;;
            *) edited="$edited $path" ;;
        esac
    done <"$1"
    [ -z "$edited" ] || die 2 "${edited# }: changed by somebody since Mayfly wrote it; save the \
edits that you need, then discard the others by this script's words $verb --force: ssh NODE sh -s \
-- $verb --force <SCRIPT (the original is kept in $journal)"
}

do_apply() {
    load_journal
    mkdir -p "$journal" || failed "$journal"
    { rm -rf "$work/plan" && mkdir "$work/plan"; } || failed "$work/plan"
    set_text "$work/planned" ''
    set_text "$work/new" ''
    number=0
    "plan_$family"
    lines=$(cat "$work/old") || failed "$work/old"
    [ -z "$lines" ] || add_line "$work/new" "$lines"
    while IFS=$tab read -r number filemode path; do
        digest=$(sha_of "$work/plan/$number") || failed "$work/plan/$number"
        known=$(entry_of "$path" "$work/new") || failed "$work/new"
        case $known in
            '')
                look "$tree$path"
                if [ "$kind" = file ]; then save_original "$tree$path"; fi
                entry="E$tab$path$tab$kind$tab$content$tab$mode$tab$uid$tab$gid$tab$mtime"
                add_line "$work/new" "$entry$tab$xattrs$tab$digest "
                ;;
            *"$digest"*) ;;
            *) add_digest "$work/new" ;;
        esac
        lines=$(missing_above "$path" | while IFS= read -r line; do
            grep -qxF "$line" "$work/new" || printf '%s\n' "$line"
        done)
        [ -z "$lines" ] || add_line "$work/new" "$lines"
    done <"$work/planned"
    refuse_edits "$work/new"
    if [ -s "$work/new" ]; then store_journal "$work/new"; fi
    while IFS=$tab read -r number filemode path; do write_planned; done <"$work/planned"
    drop_unplanned
    [ -f "$journal/journal.json" ] || [ -f "$journal/logins" ] || rm -rf "$journal" ||
        failed "$journal"
    "notes_$family"
    notes_after_revert
    written=
    restored=
}

# Keep a file, which `look` saw, under its digest.
save_original() { # file
    [ "$(sha_of "$journal/$content" 2>/dev/null)" != "$content" ] || return 0
    cp "$1" "$work/original" || failed "$work/original"
    [ "$(sha_of "$work/original")" = "$content" ] ||
        die 1 "$1: changed while it was read, or its copy is short; run this again"
    put_file "$work/original" "$journal/$content" 600
    rm -f "$work/original"
}

write_planned() {
    while IFS=$tab read -r letter directory; do
        case $letter$path in D"$directory"/*) ;; *) continue ;; esac
        make_directory "$tree$directory"
    done <"$work/new"
    if [ ! -L "$tree$path" ] && cmp -s "$work/plan/$number" "$tree$path"; then
        remove_file "$tree${path%/*}/.${path##*/}.mayfly"
        say "kept $path (as it should be already)"
        return
    fi
    read_entry "$(entry_of "$path" "$work/new")"
    if [ "$kind" = file ]; then
        # A file that there was keeps its owner and mode, but for rights that no secret has.
        if [ "$filemode" = 600 ]; then mode=600 xattrs=-; fi
        put_file "$work/plan/$number" "$tree$path" "$mode" "$uid" "$gid" - "$xattrs"
    else
        put_file "$work/plan/$number" "$tree$path" "$filemode"
    fi
    written="$written $path"
    say "wrote $path"
}

# Revert the files that an earlier plan had and this one lacks.
drop_unplanned() {
    paths=$(cut -f 3 "$work/planned") || failed "$work/planned"
    set_text "$work/kept" ''
    set_text "$work/dropped" ''
    while IFS= read -r line; do
        one=${line#?"$tab"}
        one=${one%%"$tab"*}
        case $line in
            E*) one=$one$newline ;;
            *) one=$one/ ;;
        esac
        case $newline$paths$newline in
            *"$newline$one"*) list=kept ;;
            *) list=dropped ;;
        esac
        add_line "$work/$list" "$line"
    done <"$work/new"
    [ -s "$work/dropped" ] || return 0
    put_back "$work/dropped"
    if grep -q '^E' "$work/kept"; then
        store_journal "$work/kept"
    else
        remove_file "$journal/journal.json"
    fi
}

# Put files back, the last written first, and remove directories, innermost first.
put_back() { # lines
    while IFS=$tab read -r letter path was content _; do
        [ "$letter $was" = "E file" ] || continue
        [ "$(sha_of "$journal/$content" 2>/dev/null)" = "$content" ] ||
            die 1 "$journal/$content: missing or damaged, so $path cannot be put back"
    done <"$1"
    lines=$(awk '$1 == "E" { line[++n] = $0 } END { for (i = n; i; i--) print line[i] }' "$1") ||
        failed "$work"
    set_text "$work/reversed" "$lines$newline"
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        read_entry "$line"
        put_back_one
    done <"$work/reversed"
    directories=$(directories_of "$1") || failed "$work"
    for one in $directories; do
        case $base in "$tree$one"/*) continue ;; esac
        remove_directory "$tree$one" || warn "kept $one: somebody else's files are in it"
    done
    sync
}

# Print the directories of some lines, innermost first.
directories_of() {
    awk -F '\t' '
        $1 == "D" { found[++n] = $2; if (length($2) > longest) longest = length($2) }
        END {
            for (at = longest; at; at--)
                for (i = 1; i <= n; i++) if (length(found[i]) == at) print found[i]
        }' "$1"
}

put_back_one() {
    wanted="$kind $content $mode $uid $gid" wanted_kind=$kind wanted_content=$content
    wanted_mode=$mode wanted_uid=$uid wanted_gid=$gid wanted_mtime=$mtime wanted_xattrs=$xattrs
    temporary=$tree${path%/*}/.${path##*/}.mayfly
    remove_file "$temporary"
    look "$tree$path"
    if [ "$kind $content $mode $uid $gid" = "$wanted" ]; then return; fi
    if [ "$wanted_kind" != absent ]; then
        for one in $(missing_above "$path" | cut -f 2); do make_directory "$tree$one"; done
    fi
    case $wanted_kind in
        absent) remove_file "$tree$path" ;;
        link)
            {
                ln -s "$wanted_content" "$temporary" &&
                    chown -h "$wanted_uid:$wanted_gid" "$temporary" &&
                    mv -f "$temporary" "$tree$path" && flush "$tree${path%/*}"
            } || failed "$tree$path"
            ;;
        *)
            put_file "$journal/$wanted_content" "$tree$path" "$wanted_mode" "$wanted_uid" \
                "$wanted_gid" "$wanted_mtime" "$wanted_xattrs"
            ;;
    esac
    restored="$restored $path"
    if [ "$wanted_kind" = absent ]; then say "removed $path"; else say "restored $path"; fi
}

revert_files() {
    for directory in "$base"/docker "$base"/containerd "$base"/podman; do
        [ -d "$directory" ] || continue
        runtime=${directory##*/}
        load_journal
        refuse_edits "$work/old"
        put_back "$work/old"
        above="$above $directories"
        remove_file "$journal/journal.json"
        log_out
        for one in "$journal"/* "$journal"/.[!.]*; do
            [ "$one" = "$journal/logins" ] || remove_file "$one"
        done
        [ -f "$journal/logins" ] || rm -rf "$journal" || failed "$journal"
    done
}

# Log out where pasted commands logged in; the next revert tries again where that failed. Once the
# runtime is gone no revert can log out, so the login is forgotten.
log_out() {
    [ -f "$journal/logins" ] || return 0
    lines=$(sort -u "$journal/logins") || failed "$journal/logins"
    left=
    for host in $lines; do
        if ! has "$runtime"; then
            warn "$runtime is not installed any more, so its file of logins may still have $host"
            continue
        fi
        reason=$(bounded 20 "$runtime" logout "$host" 2>&1 </dev/null)
        case "$? $reason" in
            0\ * | *[Nn]ot\ logged\ in*) say "logged out of $host" ;;
            *)
                left=$left$host$newline
                failures=$((failures + 1))
                warn "$runtime may still be logged in; run on the node: $runtime logout $host"
                ;;
        esac
    done
    store_record "$journal/logins"
}

# ---- Runtimes: find one, pull, pin, look ---------------------------------------------------------

# Whether this node has a kubelet, as far as files tell; k3s and RKE2 also have one.
has_kubelet() { [ -d "$tree/var/lib/kubelet" ] || [ -d "$tree/var/lib/rancher" ]; }

# Set runtime and family; 1 if none answers.
find_runtime() {
    if [ "$runtime" = auto ]; then
        candidates="docker containerd podman"
        # kubelet asks its CRI first; docker beside it is for people.
        if has_kubelet; then
            candidates="containerd podman docker"
        fi
        missing="neither docker, containerd nor podman answers on this node"
        if has crio; then
            missing="this node has CRI-O without podman, by which this script pulls: install podman, \
or use the output of mayfly node-config show --for crio"
        fi
    else
        candidates=$runtime
        missing="$runtime does not answer on this node"
    fi
    for runtime in $candidates; do
        family=$runtime
        if "found_$runtime"; then
            # k3s and RKE2 have a containerd, and files of their own.
            if [ "$runtime" = containerd ]; then family=${rancher:-containerd}; fi
            return 0
        fi
    done
    runtime=none
    return 1
}

# These set storage to the runtime's directory. Without its daemon old dockers print an empty one.
found_docker() {
    has docker && storage=$(bounded 20 docker info -f '{{.DockerRootDir}}' 2>/dev/null) &&
        [ -n "$storage" ]
}

found_podman() {
    has podman && storage=$(bounded 20 podman info -f '{{.Store.GraphRoot}}' 2>/dev/null)
}

found_containerd() {
    has ctr || return 1
    address=${CONTAINERD_ADDRESS:-}
    for socket in /run/k3s/containerd/containerd.sock /run/containerd/containerd.sock; do
        if [ -z "$address" ] && [ -S "$socket" ]; then address=$socket; fi
    done
    [ -n "$address" ] && versions=$(bounded 20 ctr -a "$address" version 2>/dev/null) || return 1
    case $address in
        */k3s/containerd/containerd.sock)
            if [ -d "$tree/var/lib/rancher/rke2" ]; then rancher=rke2; else rancher=k3s; fi
            containerd_config=/var/lib/rancher/$rancher/agent/etc/containerd/config.toml
            ;;
    esac
    certs=$(sed -n "s/^ *config_path *= *[\"']\([^\"':]\{1,\}\).*/\1/p" \
        "$tree$containerd_config" 2>/dev/null | head -n 1)
    configured=yes
    if [ -z "$certs" ]; then
        certs=/etc/containerd/certs.d
        server=$(printf '%s\n' "$versions" |
            sed -n '/^Server/,$s/^ *Version: *v\{0,1\}//p' | head -n 1)
        case $server in
            1.* | 2.0* | 2.1*) configured=no ;;
        esac
    fi
    if [ -n "$rancher" ]; then
        # Their containerd's files are made of registries.yaml; for these pulls there are others.
        certs=${work#"$tree"}/certs.d
        configured=no
    fi
    cri=no
    if has crictl && bounded 20 crictl -r "unix://$address" version >/dev/null 2>&1; then
        cri=yes
    fi
}

ctr_() { ctr -a "$address" -n k8s.io "$@"; }
crictl_() { crictl -r "unix://$address" -t 30m "$@"; }
docker_() { docker --config "$work/docker" "$@"; }

# The directory of a host below certs.d; containerd takes HOST_PORT_ before HOST:PORT.
host_directory() {
    case $1 in
        *:*)
            preferred=${1%:*}_${1##*:}_
            if [ -d "$tree$certs/$preferred" ]; then
                printf '%s/%s' "$certs" "$preferred"
                return
            fi
            ;;
    esac
    printf '%s/%s' "$certs" "$1"
}

hint_containerd() {
    if [ "$configured" = yes ] || [ -n "$rancher" ]; then return 0; fi
    plugin=io.containerd.cri.v1.images
    case $server in 1.*) plugin=io.containerd.grpc.v1.cri ;; esac
    note "kubelet's own pulls do not use $certs yet: add to $containerd_config the two lines \
[plugins.\"$plugin\".registry] and config_path = \"$certs\", and restart containerd, once"
}

hint_docker() { :; }
hint_podman() { :; }

# For the pulls of k3s' and RKE2's containerd, write the files that a containerd would have.
write_hosts() {
    if [ "$family" = "$runtime" ]; then return 0; fi
    (
        trap - EXIT
        planned() { # mode path content
            mkdir -p "$tree${2%/*}" || failed "$2"
            set_text "$tree$2" "$3"
        }
        plan_containerd
    ) || exit $?
}

# Give a note about a path, or about any if it is empty, if it is among those that changed.
note_of() { # paths path text
    case "$1 " in
        ' ') ;;
        *" ${2:+$2 }"*) note "$3" ;;
    esac
}

pull_containerd() { # reference paths...
    if [ "$cri" = yes ] && [ "$configured" = yes ]; then
        bounded 1800 crictl -r "unix://$address" -t 30m pull "$1"
    else
        bounded 1800 ctr -a "$address" -n k8s.io images pull --hosts-dir "$tree$certs" "$1"
    fi
}

# Of an image by digest docker keeps no other name than the one that it was pulled by.
pull_docker() {
    reference=$1
    shift
    for one in "$@"; do
        if bounded 1800 docker --config "$work/docker" pull -q "$registry/$one"; then
            case $reference in
                "$registry"/*) return 0 ;;
                *@*)
                    pulled_as=$registry/$one
                    return 0
                    ;;
            esac
            docker_ tag "$registry/$one" "$reference" && docker_ rmi "$registry/$one" >/dev/null
            return
        fi
    done
    return 1
}

# Podman that is ended leaves incomplete blobs in its temporary directory.
pull_podman() {
    TMPDIR=$work bounded 1800 podman pull -q --authfile "$work/docker/config.json" "$1"
}

# Set digest of an image that is there whole: manifest, config, and every layer unpacked.
present_containerd() {
    line=$(ctr_ images check "name==$1" 2>/dev/null | sed -n 2p)
    digest=$(printf '%s\n' "$line" | sed -n 's/^.*\(sha256:[0-9a-f]\{64\}\) .*$/\1/p')
    case $line in
        *" true"*) ;;
        *) return 1 ;;
    esac
    case $line in
        *" complete "*) ;;
        # Layers may be discarded once they are unpacked; the rest must be there.
        *) discards_layers || return 1 ;;
    esac
    [ -n "$digest" ]
}

discards_layers() {
    grep -Eq '^ *discard_unpacked_layers *= *true' "$tree$containerd_config" 2>/dev/null
}

present_docker() { # reference paths...
    reference=$1
    shift
    case $reference in
        *@*) for one in "$@"; do set -- "$@" "$registry/$one" && shift; done ;;
        *) set -- ;;
    esac
    for one in "$reference" "$@"; do
        digest=$(docker_ image inspect -f '{{.Id}}' "$one" 2>/dev/null) || continue
        layers_of docker_ "$one" && return 0
    done
    return 1
}

present_podman() {
    digest=$(podman image inspect -f '{{.Id}}' "$1" 2>/dev/null) || return 1
    digest=sha256:$digest
    layers_of podman "$1"
}

# Whether the directories of an image's layers are there, where the storage driver names them.
layers_of() {
    "$1" image inspect -f '{{range .GraphDriver.Data}}{{println .}}{{end}}' "$2" 2>/dev/null |
        tr ':' '\n' | while IFS= read -r one; do
        case $one in
            */merged | */work | "") continue ;;
            /*) [ -d "$one" ] || exit 1 ;;
        esac
    done
}

pin_containerd() {
    listed=$(ctr_ images ls "name==$1") || return 1
    if ! grep -qxF "$1" "$base/pins" 2>/dev/null; then
        case $listed in
            *io.cri-containerd.pinned=pinned*) return 0 ;; # somebody else's, not ours to remove
        esac
        { printf '%s\n' "$1" >>"$base/pins" && flush "$base/pins"; } || return 1
    fi
    ctr_ images label "$1" io.cri-containerd.pinned=pinned >/dev/null
}
# Whether the runtime can pin images.
can_pin() {
    case $runtime in
        docker) return 1 ;;
        podman) has crio ;;
    esac
}

# docker and podman cannot pin; CRI-O does by a file.
pin_docker() { :; }
pin_podman() { :; }

pinned_containerd() {
    [ "$cri" = yes ] || return 1
    # The CRI learns of a label by an event.
    for _ in 1 2 3; do
        crictl_ inspecti -o json "$1" 2>/dev/null | grep -q '"pinned": *true' && return 0
        [ "$verb" = pull ] || return 1
        sleep 1
    done
    return 1
}
pinned_docker() { return 1; }
pinned_podman() {
    has crio && has crictl || return 1
    crictl -r unix:///var/run/crio/crio.sock inspecti -o json "$1" 2>/dev/null |
        grep -q '"pinned": *true'
}

# Only containerd has pins, whichever runtime the script uses.
unpin_one() {
    ctr_ images label "$1" io.cri-containerd.pinned= >/dev/null || gone_containerd "$1"
}

# Whether the runtime says that it does not have an image.
gone_containerd() { listed=$(ctr_ images ls -q "name==$1") && [ -z "$listed" ]; }
gone_docker() { listed=$(docker_ images -q "$1") && [ -z "$listed" ]; }
gone_podman() {
    podman image exists "$1"
    [ $? -eq 1 ]
}

in_use_containerd() {
    ctr_ containers ls 2>/dev/null | awk -v image="$1" '$2 == image { n++ } END { exit !n }'
}
in_use_docker() { [ -n "$(docker_ ps -aq --filter "ancestor=$1" 2>/dev/null)" ]; }
in_use_podman() { [ -n "$(podman ps -aq --filter "ancestor=$1" 2>/dev/null)" ]; }
remove_containerd() { ctr_ images rm "$1" >/dev/null; }
remove_docker() { docker_ rmi "$1" >/dev/null; }
remove_podman() { podman rmi "$1" >/dev/null; }

free_bytes() {
    if [ "$runtime" = containerd ]; then storage=/var/lib/containerd; fi
    [ -d "$storage" ] || storage=/
    df -Pk "$storage" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }'
}

# ---- Verbs ---------------------------------------------------------------------------------------

# Call a function for each image, a few at a time: each worker takes every so manieth image.
for_each_image() {
    { rm -rf "$work/result" && mkdir "$work/result"; } || failed "$work/result"
    worker=0
    while [ "$worker" -lt "$parallel" ]; do
        (
            trap - EXIT
            # To outlive its child, of which nobody else knows: `stop` ends both.
            trap 'exit 1' HUP INT PIPE TERM
            index=0
            while read -r reference paths; do
                index=$((index + 1))
                [ $((index % parallel)) -eq "$worker" ] || continue
                # shellcheck disable=SC2086 # paths are several words, without blanks or patterns
                "$1" "$reference" $paths </dev/null \
                    >"$work/result/$index" 2>"$work/result/$index.log"
            done <"$work/images"
        ) &
        workers="$workers $!"
        worker=$((worker + 1))
    done
    # shellcheck disable=SC2086 # the names are numbers
    wait $workers
    workers=
}

# Print the processes below some: their children, the children of those, and so on.
processes_below() { # pids...
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v roots="$*" '
        { pid = $1; sub(/^.*\) /, ""); if ($1 != "Z") parent[pid] = $2 }
        END {
            n = split(roots, known, " ")
            for (i = 1; i <= n; i++)
                for (pid in parent)
                    if (parent[pid] == known[i]) { known[++n] = pid; print pid }
        }' | sort -n | tr '\n' ' '
}

# Whether one of some processes runs.
runs_any() {
    for one in "$@"; do
        state=$(sed 's/^.*) //; s/ .*//' "/proc/$one/stat" 2>/dev/null)
        case $state in '' | Z | X) ;; *) return 0 ;; esac
    done
    return 1
}

# End this script when its input ends. Only builtins wait here, so one kill ends all of it.
watch_input() {
    (
        trap - EXIT HUP INT PIPE TERM
        while read -r _; do :; done
        # If the script was killed, its number may be another's by now.
        read -r stat </proc/self/stat
        # shellcheck disable=SC2086 # fields
        set -- ${stat##*) }
        [ "$2" != "$$" ] || kill -TERM "$$"
    ) <&8 >/dev/null 2>&1 9<&- &
    watcher=$!
}

# After a signal: end the workers and all that they started, and then the script.
stop() { # code
    trap '' HUP INT PIPE TERM
    # The names are numbers.
    # shellcheck disable=SC2086
    if [ -n "$workers" ]; then
        running=
        # A stopped process starts nothing more.
        for _ in 1 2 3 4 5; do
            kill -STOP $workers $running
            before=$running
            running=$(processes_below $workers)
            [ "$running" != "$before" ] || break
        done
        if [ -n "$running" ]; then
            kill -TERM $running
            kill -CONT $running
            for _ in 1 2 3 4 5 6 7 8 9 10; do
                runs_any $running || break
                sleep 1
            done
            ! runs_any $running || kill -KILL $running
        fi
        kill -KILL $workers
        wait $workers
    fi 2>/dev/null
    exit "$1"
}

# Set told to the outcome of pulling and pinning an image.
pull_image() {
    reference=$1
    shift
    pulled_as=$reference
    if "present_$runtime" "$reference" "$@"; then before=yes; else before=no; fi
    wait_for=1
    for attempt in 1 2 3 4 5; do
        if "pull_$runtime" "$reference" "$@" >&2; then
            if [ "$before" = no ] &&
                ! printf '%s %s\n' "$reference" "$pulled_as" >>"$base/pulled-$runtime"; then
                told=unrecorded
            elif "pin_$runtime" "$reference" >&2; then
                told=pulled
            else
                told=unpinned
            fi
            return
        fi
        [ "$attempt" = 5 ] || sleep "$wait_for"
        wait_for=$((wait_for * 2))
    done
    told=failed
}

# Pull one image and say so at once; the programs that pull do not get this stream.
pull_and_tell() {
    # Not in a subshell: a signal would end that, and its children would be unknown.
    pull_image "$@" 3>&-
    printf '%s\n' "$told"
    if [ "$json$progress" = yesyes ]; then
        printf '{"image": "%s", "state": "%s"}\n' "$1" "$told" >&3
    fi
}

do_pull() {
    hint_"$runtime"
    write_hosts
    for_each_image pull_and_tell 3>&1
    count=0
    while read -r reference _; do
        count=$((count + 1))
        read -r outcome <"$work/result/$count" || outcome=failed
        case $outcome in
            pulled)
                say "pulled $reference"
                continue
                ;;
            unpinned) what="pulled, but not pinned" ;;
            unrecorded) what="pulled, but not recorded for --prune" ;;
            *) what="not pulled" ;;
        esac
        failures=$((failures + 1))
        warn "$reference: $what: $(tail -n 1 "$work/result/$count.log" | shorten)"
    done <"$work/images"
}

look_image() {
    reference=$1
    shift
    if ! "present_$runtime" "$reference" "$@"; then
        echo "missing - false"
        return
    fi
    if "pinned_$runtime" "$reference"; then pinned=true; else pinned=false; fi
    echo "present $digest $pinned"
}

# Set entries to the JSON of the images that are there and summary to how many there are, and print
# a line for each.
look_at_images() {
    for_each_image look_image
    entries=
    rows=
    count=0
    here=0
    free=$(free_bytes)
    now=$(date +%s)
    while read -r reference _; do
        count=$((count + 1))
        read -r outcome digest pinned <"$work/result/$count" || outcome=missing pinned=false
        if [ "$outcome" = present ]; then is=true; else is=false; fi
        rows="$rows${rows:+, }{\"image\": \"$reference\", \"present\": $is, \"pinned\": $pinned}"
        if [ "$outcome" != present ]; then
            failures=$((failures + 1))
            say "missing  $reference"
            continue
        fi
        here=$((here + 1))
        how=
        if [ "$pinned" = true ]; then how='pinned,   '; elif can_pin; then how='unpinned, '; fi
        say "${how}present  $reference"
        entries="$entries${entries:+, }{\"image\": \"$reference\", \"digest\": \"$digest\", \
\"runtime\": \"$runtime\", \"time\": $now, \"pinned\": $pinned, \"free\": ${free:-0}}"
    done <"$work/images"
    summary="$here of $count images are present"
    if [ "$count" -eq 1 ]; then summary="$here of 1 image is present"; fi
}

do_verify() {
    look_at_images
    can_pin || say "$runtime cannot pin images, so none is pinned"
    send_proof
    say "$summary; proof: $proof_state"
}

do_status() {
    say "node $node, runtime $runtime, registry $url"
    applied="not applied"
    for one in journal.json pasted; do
        if [ -f "$base/$runtime/$one" ]; then applied=applied; fi
    done
    say "$applied"
    look_at_images
    failures=0
    say "$summary"
}

# Ask the registry something, with the credential in a file; print the answer.
ask() { # path [body-file]
    if has curl; then
        {
            printf 'url = "%s%s"\nheader = "Authorization: %s"\n' "$url" "$1" "$authorization"
            printf 'silent\nshow-error\nfail\ngloboff\nmax-time = 60\n'
            [ -z "$ca" ] || printf 'cacert = "%s/ca.pem"\n' "$work"
            if [ $# -gt 1 ]; then
                printf 'header = "Content-Type: application/json"\ndata-binary = "@%s"\n' "$2"
            fi
        } | curl -q --config -
    else
        {
            printf 'header = Authorization: %s\n' "$authorization"
            printf 'quiet = on\ntimeout = 60\ntries = 1\n'
            [ -z "$ca" ] || printf 'ca_certificate = %s/ca.pem\n' "$work"
            if [ $# -gt 1 ]; then
                printf 'header = Content-Type: application/json\npost_file = %s\n' "$2"
            fi
        } >"$work/wgetrc"
        WGETRC=$work/wgetrc wget -O - "$url$1"
    fi
}

# busybox's wget verifies no certificate and takes headers as arguments only: it gets no secret.
can_ask() { has curl || { has wget && is_gnu wget; }; }

send_proof() {
    proof_state=none
    if [ -n "$authorization" ] && can_ask; then
        nonce=$(ask "$node_path/nonce" 2>"$work/asked" |
            sed -n 's/^.*"nonce": *"\([0-9a-f]*\)".*$/\1/p')
        if [ -n "$nonce" ]; then
            set_text "$work/proof" "{\"version\": 1, \"nonce\": \"$nonce\", \"images\": [$entries]}"
            if ask "$node_path/proof" "$work/proof" >/dev/null 2>"$work/asked"; then
                proof_state=sent
                return
            fi
        fi
        proof_state=refused
        failures=$((failures + 1))
        warn "the registry did not take the proof: $(head -n 1 "$work/asked" | shorten)"
        return
    fi
    proof_state=printed
    [ "$json" = yes ] ||
        printf '{"node": "%s", "report": {"version": 1, "nonce": "", "images": [%s]}}\n' \
            "$node_json" "$entries"
}

# Set kept_names to the names in the file of --keep; they are compared, so they must be whole.
read_keep() {
    kept_names=$(awk '
        { sub(/\r$/, ""); gsub(/^[ \t]+|[ \t]+$/, "") }
        /^(#|$)/ { next }
        {
            host = rest = $0
            sub(/\/.*$/, "", host)
            sub(/^[^\/]*\//, "", rest)
            good = host ~ /^(localhost|[a-z0-9-]+(\.[a-z0-9-]+)+|\[[0-9a-f:.]+\])(:[0-9]+)?$/ ||
                host ~ /^[a-z0-9-]+:[0-9]+$/
            good = good && /\// && rest ~ /^[a-z0-9._\/-]+(:[A-Za-z0-9_][A-Za-z0-9._-]*|@sha(256|512):[0-9a-f]+)$/
            if (rest ~ /@/)
                good = good && length(rest) - index(rest, ":") == (rest ~ /@sha256/ ? 64 : 128)
            # The hub by other names, and without its "library".
            if (host ~ /^(index|registry-1)\.docker\.io$/) good = 0
            if (host == "docker.io" && rest !~ /\//) good = 0
            if (good) { print; next }
            gsub(/[^ -~]/, "?")
            printf "mayfly: --keep, line %d: \"%s\" is not a whole name: write HOST/NAME:TAG or " \
                "HOST/NAME@DIGEST, as this script prints it\n", NR, $0 | "cat >&2"
            exit 1
        }
    ' <"$keep") || die 2 "--keep $keep: cannot be used; nothing was changed"
    [ -n "$kept_names" ] || die 2 "--keep $keep: names no image; nothing was changed"
}

is_kept() { case "$newline$kept_names$newline" in *"$newline$1$newline"*) ;; *) return 1 ;; esac; }

# Leave in a record the lines that are in $left.
store_record() { # file
    if [ -z "$left" ]; then
        remove_file "$1"
        return
    fi
    set_text "$work/left" "$left"
    put_file "$work/left" "$1" 600
}

# Remove the pins in the record, but for those to keep.
unpin_recorded() {
    [ -s "$base/pins" ] || return 0
    left=
    if [ "$runtime" != containerd ] && ! found_containerd; then
        failures=$((failures + 1))
        warn "containerd does not answer, so its images stay pinned: start it and run this again"
        return
    fi
    lines=$(sort -u "$base/pins") || failed "$base/pins"
    set_text "$work/listed" "$lines$newline"
    while IFS= read -r reference; do
        if is_kept "$reference"; then
            left=$left$reference$newline
        elif reason=$(unpin_one "$reference" 2>&1); then
            say "unpinned $reference"
        else
            left=$left$reference$newline
            failures=$((failures + 1))
            warn "$reference: not unpinned: $(last_of "$reason")"
        fi
    done <"$work/listed"
    store_record "$base/pins"
}

last_of() { printf '%s\n' "$1" | tail -n 1 | shorten; }

# Remove the images that the runtime pulled for this script, but for those to keep or in use.
prune() {
    for record in "$base"/pulled-*; do
        if [ -s "$record" ] && [ "$record" != "$base/pulled-$runtime" ]; then
            failures=$((failures + 1))
            warn "images that ${record##*-} pulled stay: run this with --runtime ${record##*-}"
        fi
    done
    [ -s "$base/pulled-$runtime" ] || return 0
    left=
    lines=$(sort -u "$base/pulled-$runtime") || failed "$base/pulled-$runtime"
    set_text "$work/listed" "$lines$newline"
    while read -r reference name; do
        if is_kept "$reference" || is_kept "$name"; then
            left="$left$reference $name$newline"
        elif "in_use_$runtime" "$name"; then
            left="$left$reference $name$newline"
            say "kept $reference (in use)"
        elif reason=$("remove_$runtime" "$name" 2>&1) || "gone_$runtime" "$name"; then
            say "removed $reference"
        else
            left="$left$reference $name$newline"
            failures=$((failures + 1))
            warn "$reference: not removed: $(last_of "$reason")"
        fi
    done <"$work/listed"
    store_record "$base/pulled-$runtime"
}

do_unpin() {
    unpin_recorded
    if [ "$runtime" = podman ] && has crio; then
        say "images pinned by CRI-O stay pinned until revert"
    fi
    [ "$prune" = no ] || prune
}

do_revert() {
    kept_names=
    unpin_recorded
    used=$runtime
    revert_files
    runtime=$used
    rm -f "$base"/pulled-* || failed "$base"
    notes_after_revert
    restored=
}

# Remove the files that only a run needs, and the directories that hold nothing any more.
clean() {
    [ -z "$watcher" ] || { kill "$watcher"; wait "$watcher"; } 2>/dev/null
    rm -rf "$work" || failed "$work"
    remove_directory "$base" || return 0
    for one in $above; do
        case $base in "$tree$one"/*) remove_directory "$tree$one" || return 0 ;; esac
    done
    sync
}

result() {
    [ "$json" = yes ] || return 0
    printf '{"node": "%s", "runtime": "%s", "verbs": [%s], "failures": %s, "proof": "%s", ' \
        "$node_json" "$runtime" "$verbs_json" "$failures" "$proof_state"
    [ "$runtime" = containerd ] || configured=
    if can_pin; then pins=yes; else pins=no; fi
    printf '"time": %s, "free": %s, "config_path": "%s", "can_pin": "%s", ' \
        "${now:-null}" "${free:-null}" "$configured" "$pins"
    printf '"images": [%s], "report": {"version": 1, "nonce": "", "images": [%s]}}\n' \
        "${rows:-}" "${entries:-}"
}

main() {
    verbs=
    while [ $# -gt 0 ]; do
        case $1 in
            apply | pull | verify | unpin | revert | status) verbs="$verbs $1" ;;
            --quiet) quiet=yes ;;
            --json) json=yes ;;
            --progress) progress=yes ;;
            --attended) attended=yes ;;
            --force) force=yes ;;
            --prune) prune=yes ;;
            --keep | --runtime)
                [ $# -gt 1 ] || die 2 "$1 needs a value"
                if [ "$1" = --keep ]; then keep=$2; else runtime=$2; fi
                shift
                ;;
            *) die 2 "$1: not a verb (apply, pull, verify, unpin, revert, status) or option" ;;
        esac
        shift
    done
    case $runtime in
        auto | docker | containerd | podman) ;;
        *) die 2 "--runtime $runtime: not known" ;;
    esac
    if [ -n "$only" ]; then
        [ -n "$verbs" ] || verbs=" $only"
        [ "$verbs" = " $only" ] || die 2 "this script does nothing but: $only"
    fi
    [ -n "$verbs" ] || verbs=" apply pull verify"
    verbs_json=$(printf '%s' "${verbs# }" | sed 's/[a-z]*/"&"/g; s/ /, /g')
    for one in awk sed sort sha256sum stat cmp ls; do
        has "$one" || die 2 "this node has no $one"
    done
    [ -z "$keep" ] || read_keep
    PATH=$PATH:/usr/local/bin:/usr/local/sbin:/var/lib/rancher/rke2/bin:/opt/bin
    [ -d "$tree/var/lib" ] || die 2 "this node has no /var/lib"
    [ -w "$tree/var/lib" ] || die 2 "run this as root"
    mkdir -p "$base" || failed "$base"
    if has flock; then
        exec 9<"$base"
        flock -n 9 || die 1 "another run of this script is at work here; try again when it is done"
    fi
    if sync "$base" 2>/dev/null; then syncs_files=yes; else syncs_files=no; fi
    trap clean EXIT
    trap 'stop 129' HUP
    trap 'stop 130' INT
    trap 'stop 141' PIPE
    trap 'stop 143' TERM
    [ "$attended" = no ] || watch_input
    { rm -rf "$work" && mkdir "$work" "$work/docker"; } || failed "$work"
    set_text "$work/docker/config.json" "$docker_config"
    set_text "$work/ca.pem" "$ca"
    set_text "$work/images" "$images${images:+$newline}"
    if ! find_runtime; then
        # A node whose runtime is gone can still be cleaned.
        [ "$verbs" = " revert" ] || die 2 "$missing"
    fi
    for verb in $verbs; do "do_$verb"; done
    result
    trap - EXIT
    clean
    if [ "$failures" -gt 0 ]; then exit 3; fi
    # A shell that reads this from its input would wait for more of it.
    exit 0
}

# Input may be closed. In braces, so that a part of the last line does nothing.
(: 8<&0) 2>/dev/null || exec </dev/null
{ main "$@" 8<&0 </dev/null; }
