# Sourced by the tests of what an operator does.

# serve_arguments CONFIG [ADDRESS]: the arguments for `flowtally serve` with a configuration file, and
# perhaps another address to listen on.
serve_arguments() {
  echo "--config $1 ${2:+--listen $2}"
}
