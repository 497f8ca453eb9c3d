#!/bin/sh
# Starts nginx with Nchan on PORT (3004) for NCHAN_STREAMS (100) streams. It writes only to FOLDER.
#   usage: bench/nchan/run.sh FOLDER
set -eu
[ $# = 1 ] || { echo "usage: bench/nchan/run.sh FOLDER" >&2 && exit 2; }
streams=${NCHAN_STREAMS:-100}

# While less than a sixteenth of its connections is free, nginx closes those without a request.
connections=$((streams + streams / 8 + 100))
sed "s/:3004/:${PORT:-3004}/; s/worker_connections .*;/worker_connections $connections;/" \
	"$(dirname "$0")/nginx.conf" >"$1/nginx.conf"

# As many descriptors as allowed. nginx does this by itself only where it has a master process.
# shellcheck disable=SC3045 # each sh that is in use has it
ulimit -n "$(ulimit -Hn)"
exec nginx -p "$1" -c nginx.conf -e stderr
