# frozen_string_literal: true

require "rails"
require "action_controller/railtie"

class SseDashboard < Rails::Application
  config.load_defaults 6.1
  config.root = File.expand_path("..", __dir__)
  config.api_only = true
  config.cache_classes = true
  config.eager_load = true
  config.secret_key_base = SecureRandom.hex(64) # no cookies, so a restart may change it
  config.logger = ActiveSupport::Logger.new($stderr)
  config.log_level = :warn
  config.after_initialize { Dashboard.instance.start }
end
