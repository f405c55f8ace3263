# shellcheck shell=sh
# Runs in a Linux with systemd as PID 1: installs the package, serves, upgrades, crashes, reboots,
# removes. Called with the number of the boot and the kind of package, deb or rpm. What a step found
# goes to /result, and a failure ends it.
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
files() { find / -xdev -path /proc -prune -o -print | sort; }
# Debian's rpm refuses to install without that option.
install_package() {
    case $kind in
    deb) dpkg --install "/$1.deb" ;;
    rpm) rpm --upgrade --force-debian "/$1.rpm" ;;
    esac
}
remove_package() {
    case $kind in
    deb) dpkg --purge mayfly ;;
    rpm) rpm --erase --force-debian mayfly ;;
    esac
}
kind=$2
state=/var/lib/mayfly/state
manifest=https://127.0.0.1:5000/v2/team/app/manifests/1

if [ "$1" = 1 ]; then
    if [ "$kind" = rpm ]; then
        rpm --upgrade --force-debian /system.rpm
    fi
    files >/before
    step "install"
    install_package old
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
    step "upgrade"
    before=$(main_pid)
    install_package new
    [ "$(main_pid)" = "$before" ]
    grep -c '^MAYFLY_BUNDLES=/srv/up.tar$' /etc/mayfly/mayfly.env
    get --user "pull:$(cat /password)" "$manifest" | cmp - /manifest
    mayfly status | head -3
    step "crash"
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
    remove_package
    systemctl is-active mayfly.socket mayfly.service || true
    files >/after
    comm -13 /before /after | grep -Ev '^/(var/(log|cache|tmp)|tmp|run|before|after|manifest|password|result|boots|root|var/lib/(dpkg|rpm|systemd)|etc/(machine-id|resolv.conf|\.pwd\.lock|(group|gshadow|passwd|shadow)-))' || true
    getent passwd mayfly || true
    step "done"
    trap - EXIT
    systemctl poweroff
fi
