# Sourced by the other scripts: the project's root as working directory, one target directory for
# all checkouts, and what has to be installed.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Outside of the checkout, so that a fresh clone does not compile RocksDB (a quarter of an hour on
# two cores) again.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/flowtally/target}"

# missing PACKAGE…: prints the Debian packages that are not installed.
missing() {
  local package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

# need PACKAGE…: installs the Debian packages that are missing, or prints what to install.
need() {
  local missing
  mapfile -t missing < <(missing "$@")
  [ ${#missing[@]} -eq 0 ] && return
  local install=(apt-get install -y --no-install-recommends "${missing[@]}")
  echo "installing: ${missing[*]}" >&2
  if ! command -v apt-get >/dev/null; then
    echo "this is not a Debian-like system; install the equivalents of: ${missing[*]}" >&2
    exit 1
  elif may_be_root; then
    (as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive "${install[@]}") >&2
  else
    echo "missing: ${missing[*]}; install them with: sudo ${install[*]}" >&2
    exit 1
  fi
}

may_be_root() {
  [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# need_idle PACKAGE…: the same for packages with services, which are not started: while they are installed, the policy of this
# machine forbids it.
need_idle() {
  local policy=/usr/sbin/policy-rc.d status=0
  [ -n "$(missing "$@")" ] || return 0
  if [ -e $policy ] || ! may_be_root; then
    need "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin $policy
  (need "$@") || status=$?
  as_root rm $policy
  return $status
}

# need_unpacked PACKAGE…: unpacks Debian packages into $CARGO_TARGET_DIR/tools/unpacked, and installs the libraries that they need:
# for programs that cannot be installed beside those of this machine, such as another syslog daemon.
need_unpacked() {
  local unpacked="$CARGO_TARGET_DIR/tools/unpacked" package download libraries
  for package in "$@"; do
    [ ! -e "$unpacked/complete/$package" ] || continue
    if ! command -v apt-get >/dev/null; then
      echo "this is not a Debian-like system; the programs of its package $package are needed" >&2
      exit 1
    fi
    echo "unpacking: $package" >&2
    download=$(mktemp -d)
    (
      cd "$download"
      apt-get download "$package" || { may_be_root && as_root apt-get update && apt-get download "$package"; }
    ) >&2
    libraries=$(dpkg-deb -f "$download"/*.deb Depends | tr , '\n' | sed 's/^ *//; s/[ |].*//' | grep '^lib')
    # shellcheck disable=SC2086 # one word for each
    need $libraries
    mkdir -p "$unpacked/complete"
    dpkg-deb -x "$download"/*.deb "$unpacked"
    touch "$unpacked/complete/$package"
    rm -r "$download"
  done
}

need_cargo() {
  command -v cargo >/dev/null && return
  echo "no Rust toolchain found; get one as https://rustup.rs says, then run this again" >&2
  exit 1
}

# The requirements of a build: a C++ compiler for RocksDB, libclang for its bindings, make and OpenSSL for librdkafka,
# and pkg-config to find OpenSSL.
need_build() {
  need_cargo
  need g++ libc6-dev libclang-dev libssl-dev make pkg-config python3
  # Without it, cargo compiles RocksDB itself, which takes four times as long.
  local library
  library=$(./scripts/rocksdb)
  [ -z "$library" ] || export ROCKSDB_LIB_DIR=$library ROCKSDB_STATIC=1
}

# build_agent DIR [ARGUMENT…]: builds the agent alone, with the features that it needs itself, and without a C++ compiler.
# DIR is a target directory of its own: with another CXX, cargo would compile the C libraries of the service again. Without
# symbols, as the package has it.
build_agent() {
  need_cargo
  need gcc libc6-dev
  CXX=false CARGO_PROFILE_RELEASE_STRIP=symbols cargo build --release --locked -p flowtally-agent --target-dir "$@"
}

# need_jars POM DIR: fetches the dependencies of POM from Maven Central into DIR; again when a POM has changed.
need_jars() {
  need maven
  mkdir -p "$2"
  (
    flock 9
    cat deploy/kafka/*pom.xml | cmp -s - "$2/poms" && exit
    rm -f "$2"/*.jar
    mvn -B -q -f "$1" dependency:copy-dependencies -DoutputDirectory="$2" -DincludeScope=runtime >&2
    cat deploy/kafka/*pom.xml >"$2/poms"
  ) 9>"$2/lock"
}

# promtool and Prometheus. Their package is not installed: with systemd, that would start Prometheus.
need_promtool() {
  export PATH="$PATH:$CARGO_TARGET_DIR/tools/bin"
  command -v promtool >/dev/null && command -v prometheus >/dev/null && return
  if ! command -v apt-get >/dev/null; then
    echo "this is not a Debian-like system; put prometheus and promtool into the PATH" >&2
    exit 1
  fi
  echo "unpacking: prometheus, promtool" >&2
  local unpacked
  unpacked=$(mktemp -d)
  (
    cd "$unpacked" || exit
    apt-get download prometheus || { [ "$(id -u)" -eq 0 ] && apt-get update && apt-get download prometheus; }
    dpkg-deb -x prometheus_*.deb .
  ) >&2
  install -D -t "$CARGO_TARGET_DIR/tools/bin" "$unpacked/usr/bin/prometheus" "$unpacked/usr/bin/promtool"
  rm -r "$unpacked"
}

# python_with PACKAGE==VERSION…: prints the path of a Python with these packages, in a virtual environment of their own.
python_with() {
  need python3 python3-venv
  local venv
  venv="$CARGO_TARGET_DIR/python-$(printf '%s\n' "$@" | sha256sum | cut -c 1-12)"
  if [ ! -e "$venv/ready" ]; then
    rm -rf "$venv"
    { python3 -m venv "$venv" && "$venv/bin/pip" install -q "$@" && touch "$venv/ready"; } >&2
  fi
  echo "$venv/bin/python"
}

# go_module MODULE@VERSION: prints the directory of its files, which the Go module proxy has. Nothing is compiled.
go_module() {
  (cd / && go mod download -json "$1") | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'
}

# go_tool PACKAGE@VERSION: builds a command, once for each version, and prints its path.
go_tool() {
  local directory
  directory="$CARGO_TARGET_DIR/tools/go/$(tr '/@' '__' <<<"$1")"
  [ -n "$(ls "$directory" 2>/dev/null)" ] || (cd / && GOBIN="$directory" go install "$1") >&2
  ls "$directory"/*
}
