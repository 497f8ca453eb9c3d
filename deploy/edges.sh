#!/bin/sh
# An origin, three edges that its stream feeds, and HAProxy before them with the file of
# deploy/edges, all on this machine, until Ctrl-C. Needs Debian's haproxy, curl, and Go.
#   usage: [ORIGIN=http://localhost:3000/dashboard/stream] deploy/edges.sh [first of five ports, 3010]
# ORIGIN puts another server's stream in the origin's place, for example a Rails application's.
set -eu
cd "$(dirname "$0")/.."
name=edges.sh
# shellcheck source=deploy/start.sh
. deploy/start.sh
must_have "haproxy curl" haproxy curl

viewers=${1:-3010}
case $viewers in *[!0-9]*) fail "usage: deploy/edges.sh [first of five ports, 3010]" ;; esac
last=$((viewers + 4))
must_be_free "$viewers" $((viewers + 1)) $((viewers + 2)) $((viewers + 3)) "$last"
origin=${ORIGIN:-http://127.0.0.1:$last/dashboard/stream}
[ -n "${ORIGIN:-}" ] || start origin "http://127.0.0.1:$last/health" ./sse-server -addr "127.0.0.1:$last"
sed "s/bind :443.*/bind 127.0.0.1:$viewers/" deploy/edges/haproxy.cfg >"$dir/haproxy.cfg"
for n in 1 2 3; do
	edge=127.0.0.1:$((viewers + n))
	start "edge$n" "http://$edge/health" ./sse-server -edge -addr "$edge" -origins "http://localhost:$viewers"
	start "forward$n" - goclient/sse-client -url "$origin" -forward "http://$edge/dashboard/snapshot"
	sed -i "s/10.0.0.$n:3001/$edge/" "$dir/haproxy.cfg"
done
start haproxy "http://127.0.0.1:$viewers/health" haproxy -db -f "$dir/haproxy.cfg"
until_true forward1 grep -q "stream open" "$dir/forward1.log"
echo "http://localhost:$viewers/ goes through HAProxy, which picks an edge for each viewer
curl -N http://localhost:$viewers/dashboard/stream
pkill -f addr.127.0.0.1:$((viewers + 1))   # an edge away: its viewers come back at the others
./sse-server -edge -addr 127.0.0.1:$((viewers + 1)) -origins http://localhost:$viewers   # and back
pkill -f addr.127.0.0.1:$last   # the origin away (unless it is ORIGIN): \"stale\" ten seconds later
./sse-server -addr 127.0.0.1:$last   # and back
Ctrl-C ends all of it; logs are in $dir"
wait
