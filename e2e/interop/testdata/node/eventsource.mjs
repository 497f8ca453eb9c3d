// With --experimental-eventsource.
import {showEvent, stayAlive, url} from "./show.mjs";

stayAlive();
new EventSource(url).onmessage = showEvent;
