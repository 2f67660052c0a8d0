#!/bin/sh
# Builds the agent, the shim, the cell, the file server, the imprint and the preloaded libraries as they are shipped, into prebuilt/ beside this folder, with
# a manifest. The same sources and the same rustc give the same bytes, wherever the checkout lies.
#
#   rust/build-release.sh           build and write prebuilt/
#   rust/build-release.sh --check   is what lies in prebuilt/ made from these sources?
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$here"
LC_ALL=C
export LC_ALL

target=x86_64-unknown-linux-gnu
prebuilt=$here/../prebuilt/x86_64
built=$here/target/$target/release
programs='hutch-agent hutch-automount.so hutch-cell hutch-files hutch-imprint hutch-readonly.so hutch-shim'

case ${1-} in
  '' | --check) mode=${1-} ;;
  *) echo "usage: $0 [--check]" >&2; exit 2 ;;
esac

# Over the names and bytes of all that goes into the binaries.
source_digest() {
  find agent automount cell files imprint shim sys readonly Cargo.toml Cargo.lock .cargo build-release.sh -type f \
    ! -path '*/tests/*' ! -path '*/target/*' | sort | while read -r file; do
    printf '%s  %s\n' "$(sha256sum < "$file" | cut -d' ' -f1)" "$file"
  done | sha256sum | cut -d' ' -f1
}

# `rustc 1.95.0 (59807616e 2026-04-14)` and its target: what decides the bytes.
compiler() { printf '%s for %s' "$(rustc --version)" "$target"; }

digest_of() { sha256sum < "$1" | cut -d' ' -f1; }

# One value of our own manifest, which has one key per line.
recorded() { sed -n "s/^ *\"$1\": \"\\{0,1\\}\\([^\",]*\\)\"\\{0,1\\},\\{0,1\\}\$/\\1/p" "$prebuilt/manifest.json"; }

build() {
  cargo_home=${CARGO_HOME:-$HOME/.cargo}
  # These replace what .cargo/config.toml says, so the static libc is named here too.
  RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$here=/hutch --remap-path-prefix=$cargo_home=/cargo"
  RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$(rustc --print sysroot)=/rustc"
  export RUSTFLAGS
  cargo build --release --locked --target "$target" -p hutch-agent -p hutch-cell -p hutch-files -p hutch-imprint -p hutch-shim
  # Libraries to be preloaded, without a libc of their own: cargo would make them static ones, or refuse.
  for library in readonly automount; do
    # Two parts and no more of each: every program of a sandbox maps them when it starts.
    rustc --edition 2024 --target "$target" --crate-type cdylib -C opt-level=s -C panic=abort -C strip=symbols \
      -C force-unwind-tables=no -C link-arg=-nostdlib -C link-arg=-Wl,--build-id=none \
      -C link-arg=-Wl,--no-rosegment -C link-arg=-Wl,-z,norelro --remap-path-prefix="$here=/hutch" \
      -o "$built/hutch-$library.so" "$library/lib.rs"
  done
}

manifest() {
  printf '{\n  "compiler": "%s",\n  "sources": "%s"' "$(compiler)" "$(source_digest)"
  for program in $programs; do
    printf ',\n  "%s": "%s",\n  "%s.bytes": %s' "$program" "$(digest_of "$1/$program")" "$program" "$(stat -c %s "$1/$program")"
  done
  printf '\n}\n'
}

if [ -z "$mode" ]; then
  build
  mkdir -p "$prebuilt"
  for program in $programs; do
    # Beside and renamed: a sandbox that starts just now reads the old one or the new one, whole.
    cp "$built/$program" "$prebuilt/.$program.new"
    chmod 755 "$prebuilt/.$program.new"
    mv "$prebuilt/.$program.new" "$prebuilt/$program"
  done
  manifest "$prebuilt" > "$prebuilt/.manifest.json.new"
  mv "$prebuilt/.manifest.json.new" "$prebuilt/manifest.json"
  cat "$prebuilt/manifest.json"
  exit 0
fi

status=0
for program in $programs; do
  if [ "$(digest_of "$prebuilt/$program")" != "$(recorded "$program")" ]; then
    echo "prebuilt/x86_64/$program is not the file that its manifest names" >&2
    status=1
  fi
done
if [ "$(source_digest)" != "$(recorded sources)" ]; then
  echo 'prebuilt/ was built from other sources: run rust/build-release.sh and commit what it writes' >&2
  status=1
fi
build
if [ "$(compiler)" = "$(recorded compiler)" ]; then
  for program in $programs; do
    if ! cmp -s "$built/$program" "$prebuilt/$program"; then
      echo "prebuilt/x86_64/$program differs from what these sources build" >&2
      status=1
    fi
  done
  [ "$status" -ne 0 ] || echo "prebuilt/ is what these sources build with $(compiler)"
else
  echo "built with $(compiler); the bytes can only be compared with $(recorded compiler)"
fi
exit "$status"
