# shellcheck shell=sh
# Runs in a Debian with systemd as PID 1: installs the package, serves, crashes, reboots, removes.
# Called with the number of the boot. What a step found goes to /result, and a failure ends it.
set -eu
exec >>/result 2>&1
trap 'echo "== failed"; systemctl poweroff' EXIT

step() { echo "== $1"; }
get() { curl --silent --show-error --fail --max-time 60 --cacert "$state/ca.crt" "$@"; }
wait_for() { # seconds, command...
    left=$1
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { echo "waited in vain for: $*"; journalctl -u mayfly --no-pager; return 1; }
        sleep 1
    done
}
password() { sed -n 's/.*"pull": *"\([^"]*\)".*/\1/p' "$state/credentials.json"; }
main_pid() { systemctl show --property MainPID --value mayfly; }
state=/var/lib/mayfly/state
manifest=https://127.0.0.1:5000/v2/team/app/manifests/1

if [ "$1" = 1 ]; then
    step "install"
    find / -xdev -path /proc -prune -o -print | sort >/before
    dpkg --install /mayfly.deb
    mayfly --version
    mayfly user add ann --password-stdin --auth /etc/mayfly <<END
secret of ann
END
    runuser -u mayfly -- cat /etc/mayfly/htpasswd | grep -c ann:
    rm /etc/mayfly/htpasswd
    step "serve"
    echo "MAYFLY_BUNDLES=/srv/up.tar" >>/etc/mayfly/mayfly.env
    systemctl enable --now mayfly.socket
    wait_for 120 sh -c "curl --silent --insecure https://127.0.0.1:5000/livez && test -e $state/ready.json"
    [ "$(ps -o user= -p "$(main_pid)")" = mayfly ]
    get --user "pull:$(password)" "$manifest" >/manifest
    mayfly status | head -3
    password >/password
    step "crash"
    before=$(main_pid)
    kill -9 "$before"
    wait_for 120 sh -c "[ \$(systemctl show --property MainPID --value mayfly) -gt 0 ] && mayfly status"
    [ "$(main_pid)" != "$before" ]
    get --user "pull:$(cat /password)" "$manifest" | cmp - /manifest
    step "reboot"
    trap - EXIT
    systemctl reboot
elif [ "$1" = 2 ]; then
    wait_for 120 sh -c "curl --silent --insecure https://127.0.0.1:5000/livez && test -e $state/ready.json"
    get --user "pull:$(cat /password)" "$manifest" | cmp - /manifest
    step "users of the host"
    systemctl stop mayfly.service
    mayfly user add ann --password-stdin --auth /etc/mayfly <<END
secret of ann
END
    mayfly grant add --user ann --role guest --repositories '**' --auth /etc/mayfly
    echo "MAYFLY_AUTH=/etc/mayfly" >>/etc/mayfly/mayfly.env
    wait_for 120 sh -c "curl --silent --insecure https://127.0.0.1:5000/livez && test -e $state/ready.json"
    get --user "ann:secret of ann" "$manifest" | cmp - /manifest
    step "remove"
    dpkg --purge mayfly
    systemctl is-active mayfly.socket mayfly.service || true
    find / -xdev -path /proc -prune -o -print | sort >/after
    comm -13 /before /after | grep -Ev '^/(var/(log|cache|tmp)|tmp|run|before|after|manifest|password|result|boots|root|var/lib/(dpkg|systemd)|etc/(machine-id|resolv.conf|\.pwd\.lock|(group|gshadow|passwd|shadow)-))' || true
    getent passwd mayfly || true
    step "done"
    trap - EXIT
    systemctl poweroff
fi
