# After the files are there. The service of an upgrade that runs is not restarted: that would end it.
if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers mayfly.conf
    systemd-tmpfiles --create mayfly.conf
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
