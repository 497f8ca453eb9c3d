#!/bin/sh
# Starts the Rails dashboard on PORT (3000) for RAILS_STREAMS (100) streams.
# SSE_INTERVAL=0: no periodic snapshots.
set -eu
cd "$(dirname "$0")"

streams=${RAILS_STREAMS:-100}
threads=$((2 * streams + 100)) # Puma's and ActionController::Live's

fail() {
	echo "bench/rails: $*" >&2
	exit 1
}

# need NAME HAVE NEEDED
need() {
	case $2 in
	'' | max | unlimited) ;;
	*) [ "$2" -ge "$3" ] || fail "$1 is $2, $streams streams need $3" ;;
	esac
}

hard_limit() { awk -v name="$1" 'index($0, name) == 1 { print $(NF - 1) }' /proc/self/limits; }

ruby -e 'require "puma"; require "rails"; require "action_controller/railtie"' 2>/dev/null ||
	fail "Rails or Puma is missing: apt-get install ruby-railties ruby-actionpack puma"
need kernel.pid_max "$(cat /proc/sys/kernel/pid_max)" "$threads"
need kernel.threads-max "$(cat /proc/sys/kernel/threads-max)" "$threads"
need vm.max_map_count "$(cat /proc/sys/vm/max_map_count)" $((5 * threads / 2))
need pids.max "$(cat /sys/fs/cgroup/pids.max 2>/dev/null || true)" "$threads"
need 'ulimit -Hn' "$(hard_limit 'Max open files')" $((streams + 100))
[ "$(id -u)" = 0 ] || need 'ulimit -Hu' "$(hard_limit 'Max processes')" "$threads"

export RAILS_ENV=production
export MALLOC_ARENA_MAX="${MALLOC_ARENA_MAX:-2}"
exec puma -C config/puma.rb
