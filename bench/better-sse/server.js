// A server with the npm package better-sse, for comparison. GET /dashboard/stream opens a stream,
// POST /publish sends the snapshot in its body to all streams, and GET /health returns OK.
import { createServer } from "node:http";
import { json } from "node:stream/consumers";
import { createChannel, createSession } from "better-sse";

const channel = createChannel();
let newest = null;
let id = Date.now();

async function stream(request, response) {
  const session = await createSession(request, response, { keepAlive: 30_000 });
  if (newest) {
    session.push(newest, "message", String(id));
  }
  channel.register(session);
}

async function publish(request, response) {
  newest = await json(request);
  id += 1;
  channel.broadcast(newest, "message", { eventId: String(id) });
  response.end(`${channel.sessionCount}\n`);
}

function health(request, response) {
  response.end("OK\n");
}

const handlers = {
  "GET /dashboard/stream": stream,
  "POST /publish": publish,
  "GET /health": health,
};

async function handle(request, response) {
  const handler = handlers[`${request.method} ${request.url}`];
  if (!handler) {
    response.writeHead(404).end("Not found\n");
    return;
  }
  try {
    await handler(request, response);
  } catch (error) {
    console.error(`${request.url}: ${error.message}`);
    response.destroy();
  }
}

const port = Number(process.env.PORT ?? 3005);
createServer(handle).listen({ port, host: "127.0.0.1", backlog: 4096 });
