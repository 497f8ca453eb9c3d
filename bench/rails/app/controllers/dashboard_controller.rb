# frozen_string_literal: true

class DashboardController < ActionController::API
  # GET /dashboard/trigger-test
  def trigger_test
    render json: { message: "Test broadcast", streams: Dashboard.instance.trigger_test }
  end

  # GET /dashboard/debug
  def debug
    render json: Dashboard.instance.state
  end

  # GET /health
  def health
    render plain: "OK"
  end
end
