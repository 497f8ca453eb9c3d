# Sends activities and snapshots to sse-server. Put it into config/initializers of a Rails
# application, or require it in any other Ruby program, and change URL.
#
#   LiveDashboard.post("Deployed v42", "success")
#   LiveDashboard.put(snapshot)
#   LiveDashboard.delete
#
# Each returns true, or false with a line on the standard error. None raises an error. Each waits at
# most 0.5 s to connect, 0.5 s to write, and 0.5 s for more of the answer.
require "json"
require "net/http"

module LiveDashboard
  URL = URI("http://localhost:3001") # with the path prefix, if there is one
  OPTIONS = {
    use_ssl: URL.scheme == "https",
    open_timeout: 0.5, write_timeout: 0.5, read_timeout: 0.5, max_retries: 0
  }.freeze

  # Adds an activity. The level is "info", "success", "warning" or "error".
  def self.post(message, level = "info")
    send_request(Net::HTTP::Post, "activities") { { message: clean(message), level: level } }
  end

  # Shows a snapshot, a hash, in place of the metrics of the host.
  def self.put(snapshot)
    send_request(Net::HTTP::Put, "snapshot") { snapshot }
  end

  # Shows the metrics of the host again.
  def self.delete
    send_request(Net::HTTP::Delete, "snapshot")
  end

  # The block returns the body. An error in it counts as a failed request.
  def self.send_request(method, name)
    request = method.new("#{URL.path.chomp('/')}/dashboard/#{name}")
    request["Authorization"] = "Bearer #{ENV['SSE_TOKEN']}" if ENV["SSE_TOKEN"]
    request["Content-Type"] = "application/json"
    request.body = JSON.generate(yield) if block_given?

    answer = Net::HTTP.start(URL.host, URL.port, **OPTIONS) { |http| http.request(request) }
    return true if answer.is_a?(Net::HTTPSuccess)

    warn("dashboard: #{answer.code} #{answer.body}")
    false
  rescue StandardError => e
    warn("dashboard: #{e.message}")
    false
  end

  # The server takes 500 characters of UTF-8 without control characters.
  def self.clean(message)
    text = message.to_s.encode("UTF-8", invalid: :replace, undef: :replace).scrub
    text.gsub(/[[:cntrl:]]+/, " ")[0, 500]
  end

  private_class_method :send_request, :clean
end
