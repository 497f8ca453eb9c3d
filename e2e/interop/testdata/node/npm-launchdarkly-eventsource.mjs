import launchdarkly from "launchdarkly-eventsource";
import {showEvent, url} from "./show.mjs";

new launchdarkly.EventSource(url).onmessage = showEvent;
