// The open channel: its link, what it has missed, and the box to write in.

const FIRST_MESSAGES = 200, MAX_IN_FLIGHT = 32;

const log = new Log((problem) => said(problem, true));

function said(text, wrong) {
	$("sent").classList.toggle("wrong", Boolean(wrong));
	say($("sent"), text);
}

class ChannelView {
	constructor(name) {
		this.kind = "channel";
		this.name = name;
		this.messages = this.subscribers = null;
		this.waiting = new Map();
		$("channel-name").textContent = visible(name);
		this.begin();
		said("");
		this.link = new Link(this);
	}

	/** Nothing is known of the channel. `cursor` is the newest id seen, and where the link comes back to. */
	begin() {
		this.cursor = null;
		this.isNew = true;
		this.isCaughtUp = false;
		this.replayed = 0;
		log.start(this.name);
		log.list.setAttribute("aria-busy", "true");
	}

	path() {
		const start = this.cursor === null ? `last=${FIRST_MESSAGES}` : `since=${this.cursor}`;
		return `api/ws/${encodeURIComponent(this.name)}?${start}`;
	}

	frame(frame) {
		switch (frame.type) {
			case "message": return this.message(frame.data);
			case "caught_up": return this.caughtUp(frame.head);
			case "gap": return this.gap(frame);
			case "ack": return this.answered(frame.ref, (waited) => {
				said(`Stored as #${frame.id} after ${milliseconds(performance.now() - waited.at)}`);
				latency.add(performance.now() - waited.at, "publish to ack");
			});
			case "error": return this.answered(frame.ref, (waited) => {
				said(`Not sent: ${frame.detail}`, true);
				giveBack(waited.content);
			}) || said(`The server says: ${frame.detail}`, true);
		}
	}

	message(message) {
		if (this.cursor !== null && message.id <= this.cursor) return;
		this.cursor = message.id;
		log.add({ message });
		if (!this.isCaughtUp) {
			this.replayed += 1;
			return;
		}
		throughput.add();
		if (this.messages !== null && message.id > this.countedTo) this.messages += 1;
		this.stale = true;
	}

	caughtUp(head) {
		// The head is the whole server's: the next `since` need not be looked up far back.
		this.cursor = Math.max(this.cursor ?? 0, head);
		this.isCaughtUp = true;
		log.list.setAttribute("aria-busy", "false");
		if (this.isNew) {
			log.atBeginning(this.replayed < FIRST_MESSAGES);
		} else if (this.replayed) {
			const away = this.lostAt ? `, after ${duration((performance.now() - this.lostAt) / 1000)} away` : "";
			log.mark(`${many(this.replayed, "message")} caught up${away}`, "caught-up");
		}
		showState("live", this.isNew || this.replayed ? "Live" : "Live, nothing was missed");
		this.isNew = false;
	}

	gap({ reason, since, oldest, head }) {
		if (reason === "unknown_id") {
			// Another store: its ids are not those of the rows, and it replays nothing. So from the start.
			this.begin();
			log.mark(`Gap: the server does not know message #${since}; its history is another one now`, "gap");
			return this.link.connect();
		}
		log.mark(oldest > head
			? `Gap: of what came after #${since} nothing is kept`
			: `Gap: between #${since} and #${oldest} messages are no longer kept`, "gap");
	}

	lost() {
		this.lostAt = performance.now();
		this.isCaughtUp = false;
		this.replayed = 0;
		if (!this.waiting.size) return;
		const contents = Array.from(this.waiting.values(), ({ content }) => content);
		this.waiting.clear();
		said("The connection was lost before the answer: look whether it is here before you send it again", true);
		giveBack(contents.join("\n"));
	}

	send(content) {
		if (this.waiting.size >= MAX_IN_FLIGHT) return said("Wait: the server has not answered yet", true);
		const frame = { type: "message", author: $("author").value.trim() || "web", content, ref: this.refs = (this.refs ?? 0) + 1 };
		const lane = $("lane").value.trim();
		if (lane) frame.lane = lane;
		if (!this.link.send(frame)) {
			said("Not connected: it stays here until you send it again", true);
			return false;
		}
		this.waiting.set(frame.ref, { at: performance.now(), content });
		said("Sending");
		if (!log.following) log.toNewest();
		return true;
	}

	answered(ref, then) {
		const waited = this.waiting.get(ref);
		if (!waited) return false;
		this.waiting.delete(ref);
		then(waited);
		return true;
	}

	/** What the list of channels says of this one. Later messages are counted as they come. */
	facts(details) {
		this.subscribers = details?.subscribers ?? 0;
		this.countedTo = details?.last_id ?? 0;
		this.messages = (details?.messages ?? 0) + log.tail.filter(({ message }) => message?.id > this.countedTo).length;
		this.show();
	}

	show() {
		this.stale = false;
		// At a high rate a screen reader would never be done.
		log.list.setAttribute("aria-live", throughput.perSecond > 3 ? "off" : "polite");
		// «Nothing was missed» has been read by now.
		if (this.isCaughtUp) showState("live", "Live");
		if (this.messages === null) return say($("channel-facts"), "");
		say($("channel-facts"), `${many(this.messages, "message")} \u00b7 ${many(this.subscribers, "subscriber")}`);
		const item = Array.from($("channels").children).find((child) => child.key === this.name);
		if (item) say(item.firstChild.lastChild, channelCounts(this));
	}

	end() {
		this.link.drop();
		log.start(null);
	}
}

const channelCounts = ({ messages, subscribers }) => `${count(messages)} \u00b7 ${count(subscribers)}`;

/** Text that was not sent goes back where it came from, unless something else is there by now. */
function giveBack(content) {
	const box = $("content");
	if (!box.value) box.value = content;
	fit();
}

function fit() {
	const box = $("content");
	box.style.height = "auto";
	box.style.height = `${box.scrollHeight + 2}px`;
}

$("author").value = remembered("localStorage", "threadcast.author");
$("author").onchange = () => remembered("localStorage", "threadcast.author", $("author").value.trim());
$("content").oninput = fit;
$("content").onkeydown = (event) => {
	// While an input method composes, Enter takes its suggestion.
	if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
	event.preventDefault();
	$("compose").requestSubmit();
};
$("compose").onsubmit = (event) => {
	event.preventDefault();
	const box = $("content");
	if (!box.value.trim()) return said("There is nothing to send", true);
	if (view instanceof ChannelView && view.send(box.value)) {
		box.value = "";
		fit();
	}
};
