import {show, showLine, url} from "./show.mjs";

const answer = await fetch(url);
if (!answer.ok) throw new Error(`status ${answer.status}`);
let rest = "";
for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
	const lines = (rest + part).split("\n");
	rest = lines.pop();
	lines.forEach(showLine);
}
show("end");
