# Before the files are removed.
if [ -d /run/systemd/system ]; then
    systemctl --quiet disable --now mayfly.socket mayfly.service || true
fi
