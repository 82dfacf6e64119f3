// One WebSocket that comes back: with backoff, with a sign of life, and with words for each state.

const FIRST_WAIT = 500, LONGEST_WAIT = 15000, PING_EVERY = 2000, SILENCE = 12000;

/** Shows how the connection is. `waits` is when it will be tried again. */
function showState(phase, text, waits) {
	$("state").dataset.phase = phase;
	say($("state-text"), text);
	$("retry").hidden = phase !== "waiting" && phase !== "stopped";
	showState.waits = waits;
	countDown();
}

function countDown() {
	const left = Math.ceil((showState.waits - performance.now()) / 1000);
	$("countdown").textContent = left > 0 ? `in ${left} s` : "";
}
setInterval(countDown, 500);

/**
 * `owner` has `path()`, where to connect next; `frame(frame, text)`; `lost()`. A link never gives up,
 * except when it is told to: by the owner, by 1008, by a server that wants a token.
 */
class Link {
	constructor(owner) {
		this.owner = owner;
		this.attempts = 0;
		this.connect();
	}

	connect() {
		this.drop();
		showState("connecting", this.attempts ? "Reconnecting" : "Connecting");
		const address = new URL(this.owner.path(), base);
		address.protocol = address.protocol.replace("http", "ws");
		const socket = this.socket = new WebSocket(address, subprotocols());
		this.isOpen = false;
		this.deadline = setTimeout(() => this.lost(0, ""), 10000);
		socket.onopen = () => {
			clearTimeout(this.deadline);
			this.isOpen = true;
			this.heard = performance.now();
			this.pings = setInterval(() => this.ping(), PING_EVERY);
			showState("live", "Connected");
		};
		socket.onmessage = (event) => {
			this.heard = performance.now();
			this.attempts = 0;
			this.take(event.data);
		};
		socket.onclose = (event) => this.lost(event.code, event.reason);
	}

	take(text) {
		let frame;
		try {
			frame = JSON.parse(text);
		} catch {
			return;
		}
		if (frame.type === "pong") latency.add(performance.now() - frame.timestamp, "ping to pong");
		else this.owner.frame(frame, text);
	}

	ping() {
		// A socket whose other end has vanished says nothing by itself for minutes.
		if (performance.now() - this.heard > SILENCE) this.lost(0, "");
		else this.send({ type: "ping", timestamp: performance.now() });
	}

	/** Whether the frame is on its way. */
	send(frame) {
		if (!this.isOpen || this.socket.readyState !== WebSocket.OPEN) return false;
		this.socket.send(JSON.stringify(frame));
		return true;
	}

	lost(code, reason) {
		const wasOpen = this.isOpen;
		this.drop();
		if (wasOpen) this.owner.lost();
		if (code === 1008) return showState("stopped", reason ? `Ended by the server: ${reason}` : "Ended by the server");
		const wait = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.attempts) * (0.5 + Math.random() / 2);
		this.attempts += 1;
		this.timer = setTimeout(() => this.connect(), wait);
		showState("waiting", wasOpen ? "Connection lost, trying again" : "Trying again", performance.now() + wait);
		if (!wasOpen) this.askWhy();
	}

	/** A browser hides why a handshake was refused; an ordinary request is told. */
	async askWhy() {
		const waiting = this.timer;
		try {
			await call("api/channels");
			await call(this.owner.path());
		} catch (error) {
			// 426 says only that this was no WebSocket.
			if (this.timer !== waiting || showState.waits === undefined || error.status === 426) return;
			const why = error instanceof Refused ? `Refused: ${error.message}` : "The server cannot be reached, trying again";
			showState("waiting", why, showState.waits);
		}
	}

	/** Connects now, if it is not connected. */
	retry() {
		if (this.isOpen) return;
		this.attempts = 0;
		this.connect();
	}

	/** Lets go of the socket and everything that waits for it. */
	drop() {
		clearTimeout(this.timer);
		clearTimeout(this.deadline);
		clearInterval(this.pings);
		this.isOpen = false;
		if (!this.socket) return;
		this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
		this.socket.close();
		this.socket = null;
	}
}
