# frozen_string_literal: true

require "fiddle"
require "net/http"

# The host's metrics, from /proc. Rates are relative to the previous reading.
# A metric that cannot be read is "N/A".
class Host
  NO_LINK = /\A(lo\z|docker|veth|br-|virbr|ifb|tun|tap)/.freeze
  STATVFS = Fiddle::Function.new(Fiddle.dlopen(nil)["statvfs"],
                                  [Fiddle::TYPE_VOIDP] * 2, Fiddle::TYPE_INT)
  HEALTH = URI("http://127.0.0.1:#{ENV.fetch("PORT", 3000)}/health").freeze

  def initialize
    @jiffies = jiffies
    @bytes, @bytes_at = bytes, monotonic
  end

  def metrics
    { cpu: measured { cpu }, memory: measured { memory }, disk: measured { disk },
      network: measured { network }, response_time: measured { response_time } }
  end

  # The two largest units that are not zero: "2 days, 14 hours".
  def uptime
    measured do
      minutes = File.read("/proc/uptime").to_i / 60
      units = { "day" => minutes / 1440, "hour" => minutes / 60 % 24, "minute" => minutes % 60 }
      units = units.drop_while { |_, n| n.zero? }.first(2).reject { |_, n| n.zero? }
      next "less than a minute" if units.empty?

      units.map { |unit, n| "#{n} #{unit.pluralize(n)}" }.join(", ")
    end
  end

  private

  def measured
    yield || "N/A"
  rescue SystemCallError, IOError, Timeout::Error
    "N/A"
  end

  def cpu
    before, @jiffies = @jiffies, jiffies
    deltas = @jiffies.zip(before).map { |now, was| [now - was, 0].max }
    total = deltas.sum
    @cpu = "#{(100.0 * (total - deltas[3] - deltas[4]) / total).round}%" if total.positive?
    @cpu
  end

  # user nice system idle iowait irq softirq steal; guest is in user already.
  def jiffies
    File.open("/proc/stat", &:gets).split[1, 8].map(&:to_i)
  end

  def memory
    info = File.read("/proc/meminfo")
    total, available = info[/^MemTotal:\s+(\d+)/, 1], info[/^MemAvailable:\s+(\d+)/, 1]
    available && "#{(100.0 * (total.to_i - available.to_i) / total.to_i).round}%"
  end

  # Rounds as df does. Running df would fork this process with all its threads' stacks.
  def disk
    buffer = "\0" * 256
    return unless STATVFS.call("/", buffer).zero?

    _, _, blocks, free, available = buffer.unpack("Q5")
    "#{(100.0 * (blocks - free) / (blocks - free + available)).ceil}%"
  end

  def network
    before, before_at = @bytes, @bytes_at
    @bytes, @bytes_at = bytes, monotonic
    moved = @bytes.sum { |name, now| [now - before.fetch(name, now), 0].max }
    mbps = (moved * 8 / (@bytes_at - before_at) / 1e6).round(1)
    "#{mbps < 10 ? mbps : mbps.round} Mbps"
  end

  # Received and sent bytes of each physical interface. A container has none: there, of each
  # interface that looks real.
  def bytes
    counters = File.readlines("/proc/net/dev").drop(2).to_h do |line|
      name, numbers = line.split(":", 2)
      [name.strip, numbers.split.values_at(0, 8).sum(&:to_i)]
    end
    physical = counters.reject do |name, _|
      name == "lo" || File.exist?("/sys/devices/virtual/net/#{name}")
    end
    physical.presence || counters.reject { |name, _| name.match?(NO_LINK) }
  end

  def response_time
    start = monotonic
    Net::HTTP.start(HEALTH.host, HEALTH.port, open_timeout: 2, read_timeout: 2) do |http|
      http.get(HEALTH.path)
    end
    "#{((monotonic - start) * 1000).ceil}ms"
  end

  def monotonic
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
