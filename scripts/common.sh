# Sourced by the other scripts: the project's root as working directory, one target directory for
# all checkouts, and what has to be installed.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Outside of the checkout, so that a fresh clone does not compile RocksDB (a quarter of an hour on
# two cores) again.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/flowtally/target}"

# need PACKAGE…: installs the Debian packages that are missing, or prints what to install.
need() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local install=(apt-get install -y --no-install-recommends "${missing[@]}")
  echo "installing: ${missing[*]}" >&2
  if ! command -v apt-get >/dev/null; then
    echo "this is not a Debian-like system; install the equivalents of: ${missing[*]}" >&2
    exit 1
  elif [ "$(id -u)" -eq 0 ]; then
    (apt-get update && DEBIAN_FRONTEND=noninteractive "${install[@]}") >&2
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    (sudo apt-get update && sudo DEBIAN_FRONTEND=noninteractive "${install[@]}") >&2
  else
    echo "missing: ${missing[*]}; install them with: sudo ${install[*]}" >&2
    exit 1
  fi
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
# DIR is a target directory of its own: with another CXX, cargo would compile the C libraries of the service again.
build_agent() {
  need_cargo
  need gcc libc6-dev
  CXX=false cargo build --release --locked -p flowtally-agent --target-dir "$@"
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
