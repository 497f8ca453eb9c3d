// Prints each id and heartbeat of the stream at a URL, after the time at which it came. A second
// argument is the User-Agent, which Node sends none of by default.
const http = require("http");
const readline = require("readline");
const zlib = require("zlib");

const [url, userAgent] = process.argv.slice(2);
const headers = {"accept-encoding": "gzip"};
if (userAgent) headers["user-agent"] = userAgent;
process.exitCode = 1; // until the stream has come to its end

http.get(url, {headers}, (answer) => {
	let text = answer;
	if (answer.headers["content-encoding"] === "gzip") text = answer.pipe(zlib.createGunzip());
	text.on("end", () => { process.exitCode = 0; });
	readline.createInterface({input: text}).on("line", (line) => {
		if (line.startsWith("id: ") || line.startsWith(": ")) console.log(Date.now(), line);
	});
});
