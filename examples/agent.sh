#!/usr/bin/env bash
# Reports the bytes of each network interface of this host. Needs bash, and curl 7.84 or later.
set -euo pipefail
url=${FLOWTALLY_URL:-http://127.0.0.1:8080} period=${PERIOD:-60} counters=${COUNTERS:-/proc/net/dev}
app=${APP:-$(hostname)} vpc=${VPC:-}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
declare -A tx rx # what each interface had sent and received at the last report

# report: writes how much each counter grew since the last report, as one flow a line.
report() {
  local name numbers column sent received hour=$(($(date +%s) / 3600))
  while IFS=: read -r name numbers; do
    [ -n "$numbers" ] || continue
    name=${name// /}
    read -r -a column <<<"$numbers"
    # A counter that has become smaller began again at 0.
    sent=$((column[8] - (column[8] < ${tx[$name]:-0} ? 0 : ${tx[$name]:-0})))
    received=$((column[0] - (column[0] < ${rx[$name]:-0} ? 0 : ${rx[$name]:-0})))
    tx[$name]=${column[8]} rx[$name]=${column[0]}
    [ "$sent" -eq 0 ] && [ "$received" -eq 0 ] && continue
    printf '{"src_app":"%s","dest_app":"%s","vpc_id":"%s","bytes_tx":%d,"bytes_rx":%d,"hour":%d}\n' \
      "$app" "$name" "$vpc" "$sent" "$received" "$hour"
  done <"$counters" >"$work/batch"
}

# send: sends the batch until it counts. All tries have the same key and body, so it counts once.
send() {
  local key result after failures=0
  key=$(cat /proc/sys/kernel/random/uuid)
  # The headers come from standard input, so that no other user sees the token among the processes.
  until result=$(printf '%s\n' "Idempotency-Key: $key" "Content-Type: application/x-ndjson" \
    ${FLOWTALLY_TOKEN:+"Authorization: Bearer $FLOWTALLY_TOKEN"} |
    curl -sS --max-time 30 -H @- --data-binary @"$work/batch" -o "$work/answer" \
      -w '%{http_code} %header{retry-after}' "$url/flows") && [ "${result%% *}" = 200 ]; do
    case ${result%% *} in
      408 | 425 | 429 | 5?? | 000 | 200) ;; # temporary; or a 200 that broke off
      *) echo "nothing of the batch counted: $result $(cat "$work/answer")" >&2 && exit 1 ;;
    esac
    after=${result#* }
    [[ $after =~ ^[0-9]+$ ]] || after=0
    # Exponential, with full jitter.
    sleep "$after.$((RANDOM % 10))" "$((RANDOM % (1 << (failures < 5 ? failures : 5))))"
    failures=$((failures + 1))
  done
}

report
echo "reports $counters to $url every $period s"
while sleep "$period"; do
  report
  [ ! -s "$work/batch" ] || send
done
