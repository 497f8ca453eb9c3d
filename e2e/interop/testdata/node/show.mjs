// Prints what a client gets, after the time in milliseconds at which it came.
let lastId = "";

export const show = (what) => console.log(Date.now(), what);

// showLine shows an event when its data has come, and each heartbeat.
export const showLine = (line) => {
	const [, name, value] = line.match(/^([^:]*): ?(.*)$/) ?? [];
	if (name === "id") lastId = value;
	if (name === "data") show(`event ${lastId} ${value.length}`);
	if (name === "") show("heartbeat");
};

export const showEvent = (event) => {
	show(`event ${event.lastEventId ?? event.id} ${event.data.length}`);
};

export const url = process.argv[2];

// stayAlive keeps the program running, as a server's other work does: the EventSource of Node does
// not while it waits to come back.
export const stayAlive = () => setInterval(() => {}, 1e6);
