# frozen_string_literal: true

require "fiddle"
require "puma/server"

streams = Integer(ENV.fetch("RAILS_STREAMS", 100))
%i[NOFILE NPROC].each { |name| Process.setrlimit(name, Process.getrlimit(name).last) }

environment "production"
bind "tcp://0.0.0.0:#{ENV.fetch("PORT", 3000)}?low_latency=true&backlog=4096"
workers 0
threads 5, 2 * streams + 6 # one for each stream, two while it starts
wait_for_less_busy_worker 0 # the only worker: waiting would delay each accept by 5 ms
persistent_timeout 20
force_shutdown_after 0 # streams do not end by themselves

# Puma corks each response until its end, so Linux would delay every event by 200 ms.
Puma::Server.class_eval { def cork_socket(_socket); end }

# Linux 6.16 and later keep the waiting threads of a process in about 16 lists. Each wake searches
# one list. Ask for 16,384 lists (PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS); older kernels reject it.
prctl = Fiddle::Function.new(Fiddle.dlopen(nil)["prctl"],
                             [Fiddle::TYPE_INT, *[Fiddle::TYPE_LONG] * 4], Fiddle::TYPE_INT)
prctl.call(78, 1, 16_384, 0, 0)
