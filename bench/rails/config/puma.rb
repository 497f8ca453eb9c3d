# frozen_string_literal: true

require "fiddle"
require "puma/server"

streams = Integer(ENV.fetch("RAILS_STREAMS", 100))
%i[NOFILE NPROC].each { |name| Process.setrlimit(name, Process.getrlimit(name).last) }

environment "production"
bind "tcp://0.0.0.0:#{ENV.fetch("PORT", 3000)}?low_latency=true&backlog=4096"
workers 0
threads 5, 2 * streams + 6 # each stream holds one; one that is being started counts twice
wait_for_less_busy_worker 0 # there is no other worker: waiting only slows each accept by 5 ms
persistent_timeout 20
force_shutdown_after 0 # a stream never ends by itself

# Puma corks each response until it ends: Linux holds every event of a stream back for 200 ms.
Puma::Server.class_eval { def cork_socket(_socket); end }

# Linux 6.16 and later keep the waiting threads of a process in 16 lists or a few more, and each
# wake searches one: ask for 16,384 (PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS; older ones refuse).
prctl = Fiddle::Function.new(Fiddle.dlopen(nil)["prctl"],
                             [Fiddle::TYPE_INT, *[Fiddle::TYPE_LONG] * 4], Fiddle::TYPE_INT)
prctl.call(78, 1, 16_384, 0, 0)
