# Sourced by the tests of what an operator does.

# serve_arguments CONFIG [ADDRESS]: the arguments for `flowtally serve` that a configuration file stands
# for, with another address to listen on.
serve_arguments() {
  if flowtally serve --help | grep -q -e '--config '; then
    echo "--config $1 ${2:+--listen $2}"
  else
    sed -nE -e "/^listen = /s#\".*\"#${2:-&}#" -e 's/^([a-z-]+) = "?([^"]*)"?$/--\1=\2/p' "$1"
  fi
}
