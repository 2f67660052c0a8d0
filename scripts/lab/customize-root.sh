#!/bin/sh
# Run by mmdebstrap with the new root in $1: what makes it the lab.
set -eu
root=$1
here=$(cd "$(dirname "$0")" && pwd)

install -m 755 "$here/guest-service.py" "$root/usr/local/sbin/guest-service.py"
cat >"$root/etc/systemd/system/hutch-lab.service" <<'EOF'
[Unit]
Description=Lab control
[Service]
ExecStart=/usr/local/sbin/guest-service.py
Restart=always
KillMode=process
OOMScoreAdjust=-900
[Install]
WantedBy=multi-user.target
EOF
chroot "$root" systemctl --quiet enable hutch-lab.service
chroot "$root" systemctl --quiet mask getty@tty1.service
echo lab >"$root/etc/hostname"
echo '127.0.0.1 localhost lab' >"$root/etc/hosts"
echo '/dev/vda / ext4 noatime 0 1' >"$root/etc/fstab"
printf '%s\n' kvm-amd vhost_vsock vhost_net tun xfs dm-flakey dm-log-writes overlay >"$root/etc/modules-load.d/lab.conf"
chroot "$root" useradd --create-home --shell /bin/bash --groups kvm dev
mkdir -p "$root/var/lib/systemd/linger"
touch "$root/var/lib/systemd/linger/dev"
cp "$root"/boot/vmlinuz-* "$root/vmlinuz.out"
cp "$root"/boot/initrd.img-* "$root/initrd.out"
