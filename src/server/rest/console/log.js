// The messages of one channel. At most MAX_ROWS are in the page; the others are in the server.
//
// `tail` holds the newest as data. While the reader is at the bottom, the rows are its end. Who reads
// further up is left alone: new ones wait in `tail`, or are read from the server when the reader gets there.

const MAX_ROWS = 500, PAGE = 100, MAX_TAIL_CHARS = 4e6, SHOWN_CHARS = 2000;

class Log {
	constructor(refused) {
		this.refused = refused;
		this.list = $("log");
		this.scroller = $("scroller");
		this.scroller.onscroll = () => this.scrolled();
		$("newest").onclick = () => {
			// The button is about to go, and the focus with it.
			this.scroller.focus();
			this.toNewest();
		};
		$("older").onclick = () => this.older();
		new ResizeObserver(() => this.following && this.toBottom()).observe(this.scroller);
		this.start(null);
	}

	start(channel) {
		this.channel = channel;
		this.tail = [];
		this.chars = 0;
		// The last entries of `tail` that have no row, and how many messages that are, kept or not.
		this.fresh = 0;
		this.unseen = 0;
		// Rows and `tail` do not meet: what is between them is read from the server.
		this.apart = false;
		this.following = true;
		this.loading = false;
		this.list.replaceChildren();
		this.atBeginning(true);
		this.show();
	}

	add(entry) {
		this.tail.push(entry);
		this.fresh += 1;
		if (entry.message) {
			this.unseen += 1;
			this.chars += entry.message.content.length;
		}
		while (this.tail.length > MAX_ROWS || (this.chars > MAX_TAIL_CHARS && this.tail.length > 1)) {
			this.chars -= this.tail.shift().message?.content.length ?? 0;
		}
		if (this.fresh > this.tail.length) {
			this.fresh = this.tail.length;
			this.apart = true;
		}
		this.schedule();
	}

	mark(text, kind) {
		this.add({ mark: text, kind });
	}

	/** Rows are made for many messages at once, and never for more than a quarter of the time. */
	schedule() {
		if (this.scheduled) return;
		this.scheduled = true;
		const paint = () => {
			const start = performance.now();
			this.scheduled = false;
			this.render();
			this.pause = Math.min(1000, (performance.now() - start) * 3);
		};
		// A hidden page gets no animation frame.
		setTimeout(() => document.hidden ? paint() : requestAnimationFrame(paint), document.hidden ? 500 : this.pause ?? 0);
	}

	render() {
		if (!this.following) return this.show();
		if (this.apart) {
			this.list.replaceChildren();
			this.fresh = this.tail.length;
			this.apart = false;
			this.atBeginning(false);
		}
		if (this.fresh) this.list.append(...this.tail.slice(-this.fresh).map(row));
		this.fresh = 0;
		this.unseen = 0;
		this.trim();
		this.toBottom();
		this.show();
	}

	/** Takes rows away at the top and returns how high they were. */
	trim() {
		const before = this.scroller.scrollHeight;
		if (this.list.childElementCount > MAX_ROWS) this.atBeginning(false);
		while (this.list.childElementCount > MAX_ROWS) this.list.firstElementChild.remove();
		return before - this.scroller.scrollHeight;
	}

	show() {
		const newest = $("newest");
		newest.hidden = this.following || (!this.unseen && !this.apart);
		say(newest, this.unseen ? `${many(this.unseen, "new message")} \u2193` : "To the newest \u2193");
		$("silence").hidden = this.list.childElementCount > 0 || this.tail.length > 0;
		$("top").hidden = !$("silence").hidden;
	}

	atBeginning(is) {
		$("older").hidden = is;
		$("beginning").hidden = !is;
	}

	toBottom() {
		this.scroller.scrollTop = this.scroller.scrollHeight;
	}

	toNewest() {
		this.following = true;
		this.render();
	}

	scrolled() {
		const { scrollTop, scrollHeight, clientHeight } = this.scroller;
		const atBottom = scrollHeight - scrollTop - clientHeight < 40;
		const wasFollowing = this.following;
		this.following = atBottom && !this.apart;
		if (this.following && !wasFollowing) this.schedule();
		else if (atBottom && this.apart) this.newer();
		if (scrollTop < 100 && scrollHeight > clientHeight) this.older();
	}

	firstId() {
		return Array.from(this.list.children).find((child) => child.id)?.messageId;
	}

	lastId() {
		return Array.from(this.list.children).findLast((child) => child.id)?.messageId ?? 0;
	}

	async page(query) {
		const channel = this.channel;
		this.loading = true;
		try {
			const { messages } = await call(`api/messages?channel_id=${encodeURIComponent(channel)}&${query}&limit=${PAGE}`);
			return this.channel === channel ? messages : null;
		} catch (error) {
			this.refused(`The history cannot be read: ${error.message}`);
			return null;
		} finally {
			if (this.channel === channel) this.loading = false;
		}
	}

	async older() {
		const first = this.firstId();
		if (this.loading || first === undefined || $("older").hidden) return;
		const messages = await this.page(`before=${first}`);
		// Meanwhile the first row may have made room for new ones.
		if (!messages || this.firstId() !== first) return;
		const before = this.scroller.scrollHeight;
		this.list.prepend(...messages.map((message) => row({ message })));
		this.scroller.scrollTop += this.scroller.scrollHeight - before;
		// A page may be short because its messages are long.
		this.atBeginning(!messages.length);
		while (this.list.childElementCount > MAX_ROWS) {
			this.list.lastElementChild.remove();
			this.apart = true;
			this.following = false;
		}
		this.show();
	}

	async newer() {
		const last = this.lastId();
		if (this.loading) return;
		const messages = await this.page(`since=${last}`);
		if (!messages || this.lastId() !== last || !this.apart) return;
		this.list.append(...messages.map((message) => row({ message })));
		const { scrollTop } = this.scroller;
		this.scroller.scrollTop = scrollTop - this.trim();
		const reached = this.lastId();
		const oldest = this.tail.find((entry) => entry.message);
		if (oldest && oldest.message.id <= reached) {
			// They meet. What follows the last row comes from `tail`, marks included.
			const at = this.tail.findLastIndex((entry) => entry.message && entry.message.id <= reached);
			this.fresh = this.tail.length - 1 - at;
			this.apart = false;
		} else if (!messages.length) {
			return this.toNewest();
		}
		this.show();
	}
}

/** One row: a message or a mark. */
function row(entry) {
	if (entry.mark) {
		const item = make("div", `between ${entry.kind}`);
		item.append(make("span", "", entry.mark));
		return item;
	}
	const { message } = entry;
	const item = make("div", "row");
	item.id = `m${message.id}`;
	item.messageId = message.id;
	const at = new Date(message.timestamp);
	const time = make("time", "", clock(at));
	time.dateTime = message.timestamp;
	time.title = `#${message.id}, ${message.timestamp}`;
	const author = make("bdi", `author a${colour(message.author)}`, visible(message.author) || "\u2013");
	author.title = message.author;
	const body = make("div", "body");
	body.append(text(message), chips(message));
	item.append(time, author, body);
	return item;
}

function text(message) {
	const element = make("div", "text");
	element.dir = "auto";
	if (message.content.length <= SHOWN_CHARS) {
		element.textContent = visible(message.content);
		return element;
	}
	element.textContent = `${visible(message.content.slice(0, SHOWN_CHARS).replace(/[\ud800-\udbff]$/, ""))}\u2026 `;
	const all = make("button", "", `Show all ${count(message.content.length)} characters`);
	all.type = "button";
	// The row does not keep it: 500 rows could be large.
	const channel = encodeURIComponent(message.channel_id);
	all.onclick = async () => {
		try {
			const { messages } = await call(`api/messages?channel_id=${channel}&since=${message.id - 1}&limit=1`);
			const found = messages[0]?.id === message.id;
			if (found) element.textContent = visible(messages[0].content);
			else all.textContent = "It is no longer kept";
		} catch (error) {
			all.textContent = `It cannot be read: ${error.message}`;
		}
	};
	element.append(all);
	return element;
}

function chips({ lane, provider, token_count: tokens }) {
	const list = make("div", "chips");
	const chip = (text, title) => {
		const element = make("bdi", "chip", visible(text));
		element.title = title;
		list.append(element);
	};
	if (lane) chip(lane, "Lane");
	if (provider) chip(provider, "Provider");
	if (tokens !== null && tokens !== undefined) chip(many(tokens, "token"), "Tokens");
	return list;
}

function clock(at) {
	const two = (number) => String(number).padStart(2, "0");
	return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** An author always has the same of six colours. */
function colour(author) {
	let hash = 0;
	for (let at = 0; at < author.length && at < 64; at += 1) hash = (hash * 31 + author.charCodeAt(at)) >>> 0;
	return hash % 6;
}
