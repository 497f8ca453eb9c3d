import {EventSource} from "eventsource";
import {showEvent, url} from "./show.mjs";

new EventSource(url).onmessage = showEvent;
