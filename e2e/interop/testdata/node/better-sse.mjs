// A server of npm's better-sse, at the port of the argument, that sends what sse-server does here:
// an event each half second and a heartbeat each two seconds.
import http from "node:http";
import {createChannel, createSession} from "better-sse";

const snapshot = {message: "x".repeat(340)};
const channel = createChannel();

http.createServer(async (request, answer) => {
	if (request.url !== "/stream") {
		answer.writeHead(404).end();
		return;
	}
	answer.setHeader("Access-Control-Allow-Origin", "*");
	const session = await createSession(request, answer, {keepAlive: 2000, retry: 2000});
	channel.register(session);
	session.push(snapshot, "message", String(Date.now()));
}).listen(process.argv[2], "127.0.0.1");

setInterval(() => {
	channel.broadcast(snapshot, "message", {eventId: String(Date.now())});
}, 500);
