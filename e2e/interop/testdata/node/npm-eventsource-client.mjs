import {createEventSource} from "eventsource-client";
import {show, showEvent, url} from "./show.mjs";

createEventSource({url, onMessage: showEvent, onComment: () => show("heartbeat")});
