# frozen_string_literal: true

# Makes one snapshot for all viewers and puts it into the queue of each open stream.
class Dashboard
  include Singleton

  HEARTBEAT = ": heartbeat\n\n"
  INTERVAL = ENV.fetch("SSE_INTERVAL", 2).to_f # seconds; 0: only when triggered
  QUEUE_SIZE = 4

  def initialize
    @mutex = Mutex.new # guards the rest
    @queues = Set.new
    @activities = []
    @id = @events = 0
    @started = Time.now
    @host = Host.new
  end

  def start
    every(30) { @mutex.synchronize { push HEARTBEAT } }
    Thread.new { sleep 0.5; refresh }
    every(INTERVAL.positive? ? INTERVAL : 2) { refresh }
  end

  # Yields a queue that starts with the newest snapshot and gets each later one.
  def subscribe
    queue = SizedQueue.new(QUEUE_SIZE)
    @mutex.synchronize do
      @queues << queue
      queue << @newest if @newest
    end
    yield queue
  ensure
    @mutex.synchronize { @queues.delete(queue) }
  end

  # Returns the number of streams that the broadcast reached.
  def trigger_test
    @mutex.synchronize do
      test = activity("Test broadcast")
      @activities.shift if @activities.first&.fetch(:message) == test[:message]
      @activities = [test, *@activities].first(10)
      broadcast
    end
  end

  def state
    @mutex.synchronize do
      { rails: Rails.version, puma: Puma::Const::VERSION, ruby: RUBY_VERSION,
        started: @started.iso8601, streams: @queues.size, events: @events, newest_id: @id,
        threads: Thread.list.size,
        resident_kib: File.read("/proc/self/status")[/VmRSS:\s+(\d+)/, 1].to_i }
    end
  end

  private

  # Reads the host once for all streams. The next snapshot has the metrics.
  def refresh
    uptime, metrics, read_at = @host.uptime, @host.metrics, clock
    @mutex.synchronize do
      @status = { status: "online", uptime: uptime, last_check: read_at,
                  message: "System running normally" }
      @metrics = metrics
      broadcast if INTERVAL.positive? || @newest.nil?
    end
  end

  def broadcast
    return 0 unless @metrics

    @id = [@id + 1, (Time.now.to_f * 1000).to_i].max
    @newest = encode(snapshot)
    @events += @queues.size
    push @newest
  end

  # One encoding for all streams, so that each stream needs one write.
  def encode(snapshot)
    event = StringIO.new
    ActionController::Live::SSE.new(event, id: @id).write(snapshot)
    event.string.freeze
  end

  def snapshot
    { system_status: @status, metrics: @metrics,
      activities: [activity("Dashboard updated"), *@activities], timestamp: clock }
  end

  # A lagging stream skips the waiting events and gets the newest.
  def push(event)
    @queues.each do |queue|
      queue.clear if queue.size == QUEUE_SIZE
      queue << event
    end
    @queues.size
  end

  def activity(message)
    { time: clock, message: message, level: "info", css_class: "activity-info" }
  end

  def clock
    Time.now.strftime("%H:%M:%S")
  end

  def every(seconds)
    Thread.new do
      loop do
        sleep seconds
        yield
      rescue StandardError => e
        Rails.logger.error("dashboard: #{e.message} (#{e.class})")
      end
    end
  end
end
