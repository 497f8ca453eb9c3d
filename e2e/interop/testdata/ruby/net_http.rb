# Prints what Net::HTTP gets, after the time in milliseconds at which it came.
require "net/http"

$stdout.sync = true

def show(what)
  now = Process.clock_gettime(Process::CLOCK_REALTIME, :millisecond)
  puts "#{now} #{what}"
end

url = URI(ARGV[0])
rest = +""
id = nil

Net::HTTP.start(url.host, url.port, use_ssl: url.scheme == "https") do |http|
  http.request_get(url.request_uri) do |answer|
    answer.value # raises unless the status is 2xx
    answer.read_body do |part|
      rest << part
      while (line = rest.slice!(/\A.*\n/))
        line.chomp!
        case line
        when /\Aid: ?(.*)/ then id = $1
        when /\Adata: ?(.*)/ then show "event #{id} #{$1.length}"
        when /\A:/ then show "heartbeat"
        end
      end
    end
  end
end
show "end"
