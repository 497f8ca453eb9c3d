# frozen_string_literal: true

class StreamsController < ActionController::API
  include ActionController::Live

  # GET /dashboard/stream
  def show
    return head :http_version_not_supported if request.version == "HTTP/1.0" # Live needs chunks

    response.headers["Content-Type"] = "text/event-stream"
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Last-Modified"] = Time.now.httpdate # else Rack::ETag buffers the stream
    response.headers["X-Accel-Buffering"] = "no"
    response.stream.write "retry: #{rand(1000..5000)}\n"
    Dashboard.instance.subscribe do |events|
      loop { response.stream.write events.pop }
    end
  rescue ClientDisconnected, IOError
    # The client is gone.
  ensure
    response.stream.close
  end
end
