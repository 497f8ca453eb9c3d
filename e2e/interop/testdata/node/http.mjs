import http from "node:http";
import https from "node:https";
import readline from "node:readline";
import {show, showLine, url} from "./show.mjs";

const {get} = url.startsWith("https:") ? https : http;
get(url, (answer) => {
	if (answer.statusCode !== 200) throw new Error(`status ${answer.statusCode}`);
	readline.createInterface({input: answer}).on("line", showLine);
	answer.on("end", () => show("end"));
	answer.on("error", (error) => show(`error ${error.message}`));
});
