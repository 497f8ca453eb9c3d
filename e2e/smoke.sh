#!/bin/sh
# Uses the built ./sse-server as a person would, with curl and sse-client, on a free port. Needs
# what build.sh builds, and curl. Ends after about three seconds.
set -eu
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "$server" 2>/dev/null || true; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
fail() {
	printf '%s\n' "FAILED: $*" >&2
	cat "$tmp"/* >&2
	exit 1
}
command -v curl >/dev/null || fail "curl is needed for the smoke test"

: >"$tmp/log" # the server may start after the first look
./sse-server -addr 127.0.0.1:0 -heartbeat 500ms 2>"$tmp/log" &
server=$!
url=
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	url=$(sed -n 's|.*url=\(http://[^/ ]*\)/.*|\1|p' "$tmp/log")
	[ -z "$url" ] || break
	sleep 0.1
done
[ -n "$url" ] || fail "the server did not start"
[ "$(curl -s "$url/health")" = OK ] || fail "/health does not say OK"

# One stream for curl and one for sse-client.
curl -sN -H "Accept: text/event-stream" "$url/dashboard/stream" >"$tmp/stream" &
reader=$!
(cd goclient && ./sse-client -url "$url/dashboard/stream" -clients 1 -debug -duration 2s) >"$tmp/client" &
client=$!
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	! curl -s "$url/dashboard/debug" | grep -q '"streams_open":2' || break
	sleep 0.1
done
curl -s "$url/dashboard/debug" | grep -q '"streams_open":2' || fail "/dashboard/debug does not show two streams"
curl -s "$url/dashboard/trigger-test" | grep -q '"streams":2' || fail "the trigger did not reach both streams"
wait "$client" || fail "sse-client found something wrong"
grep -q heartbeat "$tmp/client" || fail "sse-client saw no heartbeat"

kill -TERM "$server"
wait "$server" || fail "the server ended with status $?"
server=
wait "$reader" || fail "curl did not see the stream end well"
for want in '^retry: ' '^id: ' '"system_status"' '"Test broadcast"' '^: heartbeat$'; do
	grep -q "$want" "$tmp/stream" || fail "the stream has no $want"
done
