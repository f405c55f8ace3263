# After the files are removed: Mayfly's own state goes, images and settings that users made stay, and
# with them the user that owns them.
rm -rf /var/lib/mayfly/state /run/mayfly
if [ -z "$(find /var/lib/mayfly -path '*/blobs/*/data' -print -quit 2>/dev/null)" ]; then
    rm -rf /var/lib/mayfly
fi
rmdir /etc/mayfly 2>/dev/null || true
if [ ! -e /var/lib/mayfly ] && [ ! -e /etc/mayfly ] && command -v userdel >/dev/null; then
    userdel mayfly 2>/dev/null || true
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
