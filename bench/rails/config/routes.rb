# frozen_string_literal: true

Rails.application.routes.draw do
  get "/dashboard/stream", to: "streams#show"
  get "/dashboard/trigger-test", to: "dashboard#trigger_test"
  get "/dashboard/debug", to: "dashboard#debug"
  get "/health", to: "dashboard#health"
end
