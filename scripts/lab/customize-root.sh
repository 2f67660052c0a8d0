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
# What nobody here needs, and what an emulated machine would spend its time on.
chroot "$root" systemctl --quiet mask getty@tty1.service serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer \
  dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-pstore.service
echo lab >"$root/etc/hostname"
echo '127.0.0.1 localhost lab' >"$root/etc/hosts"
echo '/dev/vda / ext4 noatime 0 1' >"$root/etc/fstab"
printf '%s\n' kvm-amd vhost_vsock vhost_net tun xfs dm-flakey dm-log-writes overlay >"$root/etc/modules-load.d/lab.conf"
chroot "$root" useradd --create-home --shell /bin/bash --groups kvm dev
mkdir -p "$root/var/lib/systemd/linger"
touch "$root/var/lib/systemd/linger/dev"

# Who installs: a user with sudo, and packages without a network. passt is there, to be taken away and installed again; Docker and
# runsc are installed by the scenario that wants them, as a daemon would look for them in all others.
chroot "$root" useradd --create-home --shell /bin/bash --groups kvm,sudo ops
echo 'ops ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/ops"
chmod 440 "$root/etc/sudoers.d/ops"
repository=$root/var/lib/lab-packages
mkdir -p "$repository"
(cd "$repository" && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq download passt)
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get clean
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq install --yes --no-install-recommends --download-only docker.io runsc
mv "$root"/var/cache/apt/archives/*.deb "$repository"
for package in "$repository"/*.deb; do
  dpkg-deb --field "$package"
  printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "${package##*/}" "$(stat -c %s "$package")" "$(sha256sum "$package" | cut -d' ' -f1)"
done >"$repository/Packages"
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/var/lib/lab-packages ./' >"$root/etc/apt/sources.list"
cp "$root"/boot/vmlinuz-* "$root/vmlinuz.out"
cp "$root"/boot/initrd.img-* "$root/initrd.out"
