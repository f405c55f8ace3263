# After the files of the package are removed: remove those that Mayfly made. Images, settings and
# other files stay, and with them the user that owns them.
rm -rf /var/lib/mayfly/state /run/mayfly
store=/var/lib/mayfly/store
if [ -d "$store" ] && data=$(find "$store" -path '*/blobs/*/data' -print -quit) && [ -z "$data" ]; then
    rm -rf "$store"
fi
for directory in /var/lib/mayfly /etc/mayfly; do
    rmdir "$directory" 2>/dev/null || true
done
if [ ! -e /var/lib/mayfly ] && [ ! -e /etc/mayfly ] && command -v userdel >/dev/null; then
    userdel mayfly 2>/dev/null || true
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
