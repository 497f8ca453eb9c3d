#!/bin/sh
# Compares the metrics in the stream with top, free, df, uptime and the network's own counters: on the
# idle host, then with two busy loops, 1 GiB allocated and, as root, a full loop-mounted file system and
# 20 Mbps between two network namespaces. Needs curl, procps, iproute2 and python3. Takes 20 s.
#   bench/agree.sh | bench/put.sh agree    puts the table into docs/benchmarks.md
set -eu
cd "$(dirname "$0")/.."
[ -x ./sse-server ] || ./build.sh >/dev/null
tmp=$(mktemp -d)
jobs=
# shellcheck disable=SC2086 # jobs is a list
trap 'kill $jobs 2>/dev/null || true; wait; umount "$tmp/full" 2>/dev/null || true; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

background() { # COMMAND...: runs until the script ends
	"$@" &
	jobs="$jobs $!"
}
allocate() { exec python3 -c 'import time; memory = b"x" * (1 << 30); time.sleep(60)'; }
spin() { while :; do :; done; }

# compare LOAD DISK: a row for each metric, from a server's stream and from the tool, over the same 6 s.
compare() {
	background ./sse-server -addr 127.0.0.1:0 -disk "$2" 2>"$tmp/log"
	sleep 3
	url=$(sed -n 's|.*url=\(http://[^/ ]*\).*|\1/dashboard/stream|p' "$tmp/log")
	[ -n "$url" ] || { echo "agree.sh: the server did not start: $(cat "$tmp/log")" >&2 && exit 1; }
	LC_ALL=C top -bn2 -d 6 | sed -n 's/^%Cpu.* \([0-9.]*\) id, *\([0-9.]*\) wa.*/\1 \2/p' >"$tmp/top" &
	top=$!
	before=$(moved)
	curl -sN -m 6 "$url" >"$tmp/stream" || true
	mbps=$(echo "$before $(moved)" | awk '{printf "%.1f", ($2 - $1) * 8 / 6 / 1e6}')
	wait "$top"
	row "$1" CPU cpu "$(tail -n 1 "$tmp/top" | awk '{printf "%.1f", 100-$1-$2}')% (top)"
	row "" memory memory "$(free | awk '/^Mem/ {printf "%.1f", 100*($2-$7)/$2}')% (free)"
	row "" disk disk "$(df -P "$2" | awk 'END {print $5}') (df)"
	row "" network network "$mbps Mbps (/proc/net/dev)"
	row "" uptime uptime "$(uptime -p) (uptime)"
}
row() { echo "| $1 | $2 | $(metric "$3") | $4 |"; }
metric() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$tmp/stream" | tail -n 3 | paste -sd ';' | sed 's/;/; /g'; }
# moved prints the bytes that all interfaces but lo have received and sent.
moved() { sed '1,2d; / lo:/d; s/.*:/& /' /proc/net/dev | awk '{n += $2 + $10} END {printf "%.0f", n}'; }

fill_disk() {
	mkdir "$tmp/full"
	truncate -s 16M "$tmp/image"
	mkfs.ext4 -q "$tmp/image"
	mount -o loop "$tmp/image" "$tmp/full"
	cat /dev/zero >"$tmp/full/file" 2>/dev/null || true
}
# The sender has a network namespace of its own. Its frames are 1208 bytes and 42 of headers.
send_20_mbps() {
	# shellcheck disable=SC2016 # $0 is the Python program
	exec unshare --net sh -ec 'until ip addr add 192.0.2.2/30 dev sse0; do sleep 0.1; done 2>/dev/null
		ip link set sse0 up; exec python3 -c "$0"' '
import socket, time
s, due = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), time.monotonic()
while True:
    for _ in range(20):
        s.sendto(bytes(1208), ("192.0.2.1", 9))
    due += 0.01
    time.sleep(max(0, due - time.monotonic()))'
}
receive_20_mbps() {
	background send_20_mbps
	sleep 1
	ip link add sse0 type veth peer name sse0 netns "$!"
	ip addr add 192.0.2.1/30 dev sse0
	ip link set lo up
	ip link set sse0 up
	ip route add default via 192.0.2.2
}

load="2 loops, 1 GiB" disk=/
if [ "${1-}" != loaded ]; then
	echo '| load | metric | three snapshots | tool |'
	echo '| --- | --- | --- | --- |'
	compare idle /
	if [ "$(id -u)" = 0 ]; then
		unshare --net --mount bench/agree.sh loaded # so that what it mounts ends with it
		exit
	fi
	echo "agree.sh: it needs root for a full disk and for network namespaces" >&2
else
	fill_disk
	receive_20_mbps
	load="$load, full disk, 20 Mbps" disk=$tmp/full
fi
background spin
background spin
background allocate
compare "$load" "$disk"
