# Sourced by tests/package: the package of the agent as an operator uses it, on a machine that runs the service. The
# agent is started like the unit, as far as possible without systemd: its user, its capabilities, a file system that is
# read-only except for its state; and its system calls are compared with the filter. What only systemd can do is not
# tested, such as RestrictNamespaces= and ConditionPathExists=: systemd-analyze checks that they can be read.

agent_unit=/usr/lib/systemd/system/flowtally-agent.service
agent_drop_ins=/etc/systemd/system/flowtally-agent.service.d
agent_examples=/usr/share/doc/flowtally-agent/examples
agent_settings=/etc/flowtally-agent/flowtally-agent.env
agent_state=/var/lib/flowtally-agent
# Another host: a network namespace.
agent_network=flowtally-package
agent_host=10.78.0.1
agent_other=10.78.0.2

# At the end of tests/package, even on failure.
leave_agent() {
  [ -z "${agent:-}" ] || kill -KILL "$agent" $(cat "/proc/$agent/task/$agent/children" 2>/dev/null) 2>/dev/null
  [ -z "${agent_servers:-}" ] || kill $agent_servers 2>/dev/null
  [ -z "${agent_has_network:-}" ] || ip netns del "$agent_network"
  rm -rf "$agent_drop_ins"
}

# The lists of capabilities of a unit and its drop-ins: capabilities KEY FILE…
capabilities() {
  sed -n "s/^$1=//p" "${@:2}" | tr ' ' '\n' | sed 's/^CAP_/+/' | tr '[:upper:]' '[:lower:]' | sort -u | paste -sd,
}

# settings URL OPTIONS: what an operator writes into the file.
settings() {
  sed -i -e "s|^FLOWTALLY_URL=.*|FLOWTALLY_URL=$1|" -e "s|^#\?OPTIONS=.*|OPTIONS=$2|" "$agent_settings"
}

# start_agent [DROP_IN]: until it has looked at all sockets. With a drop-in, under strace, to compare its system calls with
# the unit's filter.
start_agent() {
  local command options given variables=() tracer=() isolate=""
  given=$(capabilities AmbientCapabilities "$agent_unit" "$@")
  is "the capabilities that bound those of the agent" "$(capabilities CapabilityBoundingSet "$agent_unit" "$@")" "$given"
  mapfile -t variables < <(sed -n 's/^Environment=//p' "$@" /dev/null && sed -n '/^[A-Z_]*=/p' "$agent_settings")
  options=$(sed -n 's/^OPTIONS=//p' "$agent_settings")
  command=$(sed -n 's/^ExecStart=//p' "$agent_unit")
  command=${command/\$OPTIONS/$options}
  [ $# -eq 0 ] || tracer=(strace -f -c -o "$work/agent/calls")
  if unshare --mount true 2>/dev/null; then
    # Remounting affects only this namespace.
    isolate='mount -o remount,bind,ro / && for directory in /var/lib/flowtally-agent "$WORK"; do
        mount --bind "$directory" "$directory" && mount -o remount,bind,rw "$directory"
      done && ! touch /usr/flowtally 2>/dev/null && cd / &&'
  fi
  rm -f "$work/agent/metrics"
  # shellcheck disable=SC2086 # several arguments
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin WORK="$work" GIVEN="-all,$given" "${variables[@]}" \
    ${isolate:+unshare --mount} bash -c "$isolate"'
      umask 0027 && exec setpriv --reuid flowtally-agent --regid flowtally-agent --clear-groups --no-new-privs \
        --bounding-set="$GIVEN" --inh-caps="$GIVEN" --ambient-caps="$GIVEN" "$@"' \
    start "${tracer[@]}" $command >"$work/agent-log" 2>&1 &
  agent=$!
  for _ in $(seq 300); do
    [ ! -e "$work/agent/metrics" ] || return 0
    kill -0 "$agent" 2>/dev/null || break
    sleep 0.1
  done
  is "the agent" "not running" running
}
# At SIGTERM it makes the last report.
stop_agent() {
  local status=0 child
  # Under strace, it is a child.
  child=$(cat "/proc/$agent/task/$agent/children")
  kill -TERM ${child:-$agent}
  wait "$agent" || status=$?
  agent=
  is "the agent's status after SIGTERM" "$status" 0
}

# Two hosts on one wire, each with a server that takes 1,000,000 bytes and answers with 2,000,000.
connect_hosts() {
  ip link add flowtally0 type veth peer name eth0 netns "$agent_network"
  ip addr add "$agent_host/30" dev flowtally0
  ip link set flowtally0 up
  ip -n "$agent_network" addr add "$agent_other/30" dev eth0
  ip -n "$agent_network" link set eth0 up
  ip -n "$agent_network" link set lo up
  cat >"$work/serve.py" <<'END'
import socket, sys

listener = socket.create_server((sys.argv[1], 7000))
while True:
    connection, _ = listener.accept()
    with connection:
        left = 1000000
        while left and (part := connection.recv(min(left, 65536))):
            left -= len(part)
        connection.sendall(bytes(2000000))
        connection.recv(1)  # until the other end closes it
END
  cat >"$work/connect.py" <<'END'
import os, socket, sys, time

with socket.create_connection((sys.argv[1], 7000), timeout=60) as connection:
    connection.sendall(bytes(1000000))
    left = 2000000
    while left and (part := connection.recv(min(left, 65536))):
        left -= len(part)
    time.sleep(float(sys.argv[2]))
# The name of the executable: python3 is a link.
print(os.path.basename(os.readlink("/proc/self/exe")))
END
  python3 "$work/serve.py" "$agent_host" &
  agent_servers=$!
  ip netns exec "$agent_network" python3 "$work/serve.py" "$agent_other" &
  agent_servers+=" $!"
  local address prefix
  for address in "$agent_host" "$agent_other"; do
    prefix=""
    [ "$address" = "$agent_host" ] || prefix="ip netns exec $agent_network"
    for _ in $(seq 100); do
      [ -z "$($prefix ss -Hltn "src $address:7000")" ] || break
      sleep 0.1
    done
  done
}

# counted NAME GROUP BYTES…: the service has these bytes, sent and received, of the connections to NAME, for GROUP.
counted() {
  local row="[{$2\"bytes_tx\":$3,\"bytes_rx\":$4}]" group=dest_app answer
  [[ $2 != *src_app* ]] || group=src_app,dest_app
  for _ in $(seq 300); do
    answer=$(curl -s "http://127.0.0.1:$port/flows?from=0&to=4294967295&group_by=$group&dest_app=$1")
    [ "$answer" != "$row" ] || return 0
    sleep 0.1
  done
  is "what was counted" "$answer" "$row"
}

test_agent() {
  # The content of the package, beside the service's.
  install_package "$agent_package"
  grep -q 'systemctl enable --now flowtally-agent' "$work/dpkg"
  is "the agent's version" "$(flowtally-agent --version)" \
    "flowtally-agent $(dpkg-query -W -f '${Version}' flowtally-agent | sed 's/-[^-]*$//')"
  is "the agent's user" "$(getent passwd flowtally-agent | cut -d: -f6,7)" "$agent_state:/usr/sbin/nologin"
  is "the agent's state" "$(stat -c '%U:%G %a' "$agent_state")" "flowtally-agent:flowtally-agent 750"
  is "the agent's settings" "$(stat -c '%U:%G %a' "$agent_settings")" "root:root 644"
  is "the settings' kind" "$(dpkg-query -W -f '${Conffiles}' flowtally-agent | awk 'NF { print $1 }')" "$agent_settings"
  # The operator starts it, after having named the service.
  gone /etc/systemd/system/multi-user.target.wants/flowtally-agent.service
  has_documents flowtally-agent examples/{containers,names}.conf examples/daemonset.yaml
  there /usr/share/man/man1/flowtally-agent{,-watch,-listen,-send,-completions,-man}.1.gz \
    /usr/share/zsh/vendor-completions/_flowtally-agent /usr/share/fish/vendor_completions.d/flowtally-agent.fish
  bash -n /usr/share/bash-completion/completions/flowtally-agent
  local key
  for key in $(sed -nE 's/^#?([A-Z_]+)=.*/\1/p' "$agent_settings" | grep -vx OPTIONS); do
    flowtally-agent watch --help | grep -q "env: $key=" || is "the variable $key" unknown "one of watch"
  done
  is "what systemd says of the agent's unit" "$(systemd-analyze verify "$agent_unit" 2>&1)" ""
  systemd-analyze security --offline=true --no-pager --threshold=20 "$agent_unit" | tail -n 1
  local drop_in
  mkdir -p "$agent_drop_ins"
  for drop_in in names containers; do
    cp "$agent_examples/$drop_in.conf" "$agent_drop_ins/"
    is "what systemd says with $drop_in.conf" "$(systemd-analyze verify "$agent_unit" 2>&1)" ""
    rm "$agent_drop_ins/$drop_in.conf"
  done
  rmdir "$agent_drop_ins"

  if ip netns add "$agent_network" 2>/dev/null; then
    agent_has_network=yes
    connect_hosts
    test_counting
  else
    echo "package: NOT TESTED with traffic, since no network namespace can be made here"
  fi

  # Removed, and purged without anything unsent: the settings are gone, and the operator's files are kept.
  install_package "$agent_package"
  touch /etc/flowtally-agent/token
  dpkg -r flowtally-agent >"$work/dpkg" 2>&1
  gone /usr/bin/flowtally-agent "$agent_unit"
  there "$agent_settings" "$agent_state"
  dpkg -P flowtally-agent >"$work/dpkg" 2>&1
  grep -q 'stay in /etc/flowtally-agent' "$work/dpkg"
  there /etc/flowtally-agent/token
  gone "$agent_settings" "$agent_state"
  rm -r /etc/flowtally-agent
}

test_counting() {
  local url="http://127.0.0.1:$port" executable
  local options="--interval 1 --apps /etc/flowtally-agent/apps.csv --metrics-file $work/agent/metrics"
  install -d -o flowtally-agent "$work/agent"
  printf 'address,app\n%s,package-host\n%s,package-other\n' "$agent_host" "$agent_other" >/etc/flowtally-agent/apps.csv

  # As the unit has it: the connections of this host.
  settings "$url" "$options"
  start_agent
  python3 "$work/connect.py" "$agent_other" 0 >/dev/null
  counted package-other '"dest_app":"package-other",' 1000000 2000000
  # An upgrade keeps the settings.
  install_package "$agent_package"
  stop_agent
  grep -qx "FLOWTALLY_URL=$url" "$agent_settings"

  # With the drop-in: the connections of another namespace, under the name of another user's executable. For that, the
  # connection has to be open when the agent looks at all sockets, every five seconds.
  printf '[[app]]\nname = "{executable}"\n' >/etc/flowtally-agent/rules.toml
  settings "$url" "$options --app-rules /etc/flowtally-agent/rules.toml"
  start_agent "$agent_examples/containers.conf"
  executable=$(ip netns exec "$agent_network" python3 "$work/connect.py" "$agent_host" 12)
  counted package-host "\"src_app\":\"$executable\",\"dest_app\":\"package-host\"," 1000000 2000000
  stop_agent
  allows "$agent_unit" "$work/agent/calls" 30 setns

  # Not sent, since no service is there: kept by a purge, which names it, and sent by the next installation.
  local nowhere
  nowhere=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  settings "http://127.0.0.1:$nowhere" "$options"
  start_agent
  python3 "$work/connect.py" "$agent_other" 0 >/dev/null
  for _ in $(seq 100); do
    ! compgen -G "$agent_state/spool/*.json*" >/dev/null || break
    sleep 0.1
  done
  stop_agent
  dpkg -P flowtally-agent >"$work/dpkg" 2>&1
  grep -q "not sent stay; to delete them: rm -r $agent_state" "$work/dpkg"
  compgen -G "$agent_state/spool/*.json*" >/dev/null || is "the report that was not sent" absent present
  gone "$agent_settings"
  rm -r /etc/flowtally-agent
  install_package "$agent_package"
  settings "$url" "--interval 1 --metrics-file $work/agent/metrics"
  start_agent
  counted package-other '"dest_app":"package-other",' 2000000 4000000
  stop_agent
  echo "package: the agent counted what went between two hosts, also of a container's namespace, and of its spool"
}
