#!/bin/sh
# Builds the root of the lab's outer VM in the directory $1: root.ext4, vmlinuz, initrd.img. A whole Debian with
# systemd, KVM, vsock, XFS and device-mapper. Needs mmdebstrap and e2fsprogs; about a minute and 1 GB.
set -eu
out=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "$out/building.XXXXXX")
trap 'rm -rf "$work"' EXIT

packages=systemd,systemd-sysv,dbus,libpam-systemd,udev,kmod,linux-image-cloud-amd64,initramfs-tools,qemu-system-x86,passt,nftables
packages=$packages,e2fsprogs,xfsprogs,dmsetup,squashfs-tools-ng,erofs-utils,mmdebstrap,sudo,procps,iproute2,python3,ca-certificates,strace,zstd,cpio,git,curl,libnss-myhostname,libatomic1
mode=auto
[ "$(id -u)" != 0 ] || mode=root
mmdebstrap --quiet --mode="$mode" --variant=minbase --include="$packages" \
  --customize-hook="$here/customize-root.sh" \
  --customize-hook="download /vmlinuz.out $work/vmlinuz" \
  --customize-hook="download /initrd.out $work/initrd.img" \
  bookworm "$work/root.tar"
truncate -s 6G "$work/root.ext4"
mkdir "$work/root"
tar -xf "$work/root.tar" -C "$work/root"
mkfs.ext4 -q -d "$work/root" "$work/root.ext4"
chmod -R u+w "$work/root"
rm -rf "$work/root" "$work/root.tar"
mv "$work/vmlinuz" "$work/initrd.img" "$work/root.ext4" "$out/"
