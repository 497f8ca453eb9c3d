# Prints each id and heartbeat of the stream at a URL, after the time at which it came.
require "net/http"

url = URI(ARGV[0])
rest = +""
$stdout.sync = true

Net::HTTP.start(url.host, url.port) do |http|
  http.request_get(url.request_uri) do |answer|
    answer.read_body do |part|
      rest << part
      while (line = rest.slice!(/\A.*\n/))
        now = Process.clock_gettime(Process::CLOCK_REALTIME, :millisecond)
        puts "#{now} #{line}" if line.start_with?("id: ", ": ")
      end
    end
  end
end
