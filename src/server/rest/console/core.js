// What every part of the page uses. Whatever came from the network becomes text, never markup.

const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
	const element = document.createElement(tag);
	if (className) element.className = className;
	if (text !== undefined) element.textContent = text;
	return element;
}

/** Control characters as their pictures: they are to be seen, not obeyed. */
const visible = (text) => text.replace(/\r\n/g, "\n").replace(/[\0-\x08\x0b-\x1f\x7f]/g,
	(control) => control === "\x7f" ? "\u2421" : String.fromCharCode(0x2400 + control.charCodeAt(0)));

const count = (number) => number.toLocaleString("en");
const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;
const milliseconds = (ms) => ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
const duration = (seconds) => seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min`
	: seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
const bytes = (number) => number < 1024 ? `${number} B` : number < 1048576 ? `${(number / 1024).toFixed(1)} KiB` : `${(number / 1048576).toFixed(1)} MiB`;

/** The page may be served below a path of a proxy. */
const base = new URL(".", location.href);

/** Storage that a browser may forbid. */
function remembered(storage, key, value) {
	try {
		if (value === undefined) return window[storage].getItem(key) ?? "";
		if (value) window[storage].setItem(key, value);
		else window[storage].removeItem(key);
	} catch { /* then it is forgotten with the page */ }
	return value ?? "";
}

/** The open channel or feed. */
let view = null;

let token = remembered("sessionStorage", "threadcast.token");

/** How a WebSocket says the token: a browser lets it set no header. */
function subprotocols() {
	if (!token) return [];
	const binary = String.fromCharCode(...new TextEncoder().encode(token));
	return ["threadcast", "bearer." + btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "")];
}

/** An answer that is not 2xx. */
class Refused extends Error {
	constructor(status, detail) {
		super(detail);
		this.status = status;
	}
}

async function call(path, options = {}) {
	const headers = new Headers();
	const said = token;
	if (said) headers.set("Authorization", `Bearer ${said}`);
	const answer = await fetch(new URL(path, base), {
		...options, headers, cache: "no-store", signal: AbortSignal.timeout(15000),
	});
	if (answer.ok) return answer.status === 204 ? null : answer.json();
	const problem = await answer.json().catch(() => ({}));
	// Unless there is another one by now.
	if (answer.status === 401 && said === token) askForToken();
	throw new Refused(answer.status, String(problem.detail ?? `the server answered ${answer.status}`));
}

/** One item per key, moved and renewed in place, so that focus and scroll stay where they are. */
function reconcile(list, items, key, create, renew) {
	const known = new Map(Array.from(list.children, (child) => [child.key, child]));
	let next = list.firstElementChild;
	for (const item of items) {
		let child = known.get(key(item));
		if (child) {
			known.delete(child.key);
		} else {
			child = create(item);
			child.key = key(item);
		}
		if (child === next) next = next.nextElementSibling;
		else list.insertBefore(child, next);
		renew(child, item);
	}
	for (const child of known.values()) child.remove();
}

/** Sets text only where it differs: a screen reader hears changes. */
function say(element, text) {
	if (element.textContent !== text) element.textContent = text;
}
