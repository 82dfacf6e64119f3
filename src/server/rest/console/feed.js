// The open feed: its state as a tree that is changed in place, so that what is folded stays folded.

const MAX_CHILDREN = 500, OPEN_AT_FIRST = 300, MAX_CHANGES = 200, FRESH_MS = 3000;

/** A number that a double does not hold, as it was written. */
class Exact {
	constructor(source) {
		this.source = source;
	}
}

function exactly(text) {
	return JSON.parse(text, (_, value, context) =>
		typeof value === "number" && context?.source && String(value) !== context.source ? new Exact(context.source) : value);
}

const isBranch = (value) => value !== null && typeof value === "object" && !(value instanceof Exact);
const isSameKind = (a, b) => isBranch(a) && isBranch(b) && Array.isArray(a) === Array.isArray(b);

function leaf(value) {
	if (value instanceof Exact) return [value.source, "number"];
	if (typeof value !== "string") return [String(value), typeof value === "number" ? "number" : "word"];
	const text = JSON.stringify(value.slice(0, SHOWN_CHARS));
	return [value.length > SHOWN_CHARS ? `${text}\u2026 (${count(value.length)} characters)` : text, "string"];
}

function brief(value) {
	if (isBranch(value)) return size(value);
	const [text] = leaf(value);
	return text.length > 40 ? `${text.slice(0, 40)}\u2026` : text;
}

function size(value) {
	return Array.isArray(value) ? `[${count(value.length)}]` : `{${count(Object.keys(value).length)}}`;
}

/** What changed, as far as it can be told in a line. */
class Changes {
	constructor() {
		this.total = 0;
		this.words = [];
	}

	add(path, text) {
		this.total += 1;
		if (this.words.length < 3) this.words.push(`${path.join(".") || "the state"} ${text}`);
	}

	toString() {
		const more = this.total > this.words.length ? `, and ${count(this.total - this.words.length)} more` : "";
		return this.words.join(", ") + more;
	}
}

/** Whether two values differ, with what differs in them. */
function differ(was, is, path, changes) {
	if (was === is) return false;
	if (!isSameKind(was, is)) {
		const exact = was instanceof Exact && is instanceof Exact && was.source === is.source;
		if (exact) return false;
		changes.add(path, `${brief(was)} \u2192 ${brief(is)}`);
		return true;
	}
	const before = changes.total;
	for (const key of Object.keys(is)) {
		if (!Object.hasOwn(was, key)) changes.add([...path, key], "added");
		else if (changes.total < MAX_CHANGES) differ(was[key], is[key], [...path, key], changes);
	}
	for (const key of Object.keys(was)) if (!Object.hasOwn(is, key)) changes.add([...path, key], "removed");
	return changes.total > before;
}

/** A value in the tree, with its key. */
class Twig {
	constructor(key, value, budget) {
		this.key = key;
		this.element = make("li");
		this.draw(value, budget);
	}

	draw(value, budget) {
		this.value = value;
		this.twigs = null;
		const name = this.key === null ? [] : [make("span", "key", visible(this.key)), ": "];
		if (!isBranch(value)) {
			const [text, kind] = leaf(value);
			this.element.replaceChildren(...name, make("bdi", kind, visible(text)));
			return;
		}
		const fold = this.fold = make("details");
		const summary = make("summary");
		this.size = make("span", "muted", size(value));
		summary.append(...name, this.size);
		this.list = make("ul");
		fold.append(summary, this.list);
		fold.ontoggle = () => fold.open && !this.twigs && this.grow({ left: 0 });
		this.element.replaceChildren(fold);
		const length = Object.keys(value).length;
		if (this.key === null || length <= budget.left) {
			budget.left -= length;
			this.grow(budget);
			fold.open = true;
		}
	}

	grow(budget) {
		this.twigs = new Map();
		this.spread(this.value, budget, null, []);
	}

	/** Children for the keys of a value; those that were there are kept. */
	spread(value, budget, changes, path) {
		const keys = Object.keys(value).slice(0, MAX_CHILDREN);
		const kept = new Map();
		for (const key of keys) {
			const twig = this.twigs.get(key);
			if (twig) {
				twig.renew(value[key], changes, [...path, key]);
				kept.set(key, twig);
			} else {
				const made = new Twig(key, value[key], budget);
				kept.set(key, made);
				if (changes) {
					changes.add([...path, key], "added");
					made.flash();
				}
			}
		}
		for (const key of this.twigs.keys()) if (!kept.has(key)) changes?.add([...path, key], "removed");
		this.twigs = kept;
		const rows = Array.from(kept.values(), (twig) => twig.element);
		const left = Object.keys(value).length - keys.length;
		if (left > 0) rows.push(make("li", "muted", `and ${count(left)} more`));
		if (rows.length !== this.list.children.length || rows.some((item, at) => item !== this.list.children[at])) this.list.replaceChildren(...rows);
	}

	renew(value, changes, path) {
		const was = this.value;
		if (this.twigs && isSameKind(was, value)) {
			const before = changes.total;
			this.value = value;
			this.spread(value, { left: 20 }, changes, path);
			if (!this.fold.open && changes.total > before) this.flash();
			say(this.size, size(value));
			return;
		}
		if (!differ(was, value, path, changes)) return;
		if (isSameKind(was, value)) {
			this.value = value;
			say(this.size, size(value));
		} else {
			this.draw(value, { left: 20 });
		}
		this.flash();
	}

	flash() {
		const marked = this.element.querySelector("summary") ?? this.element;
		marked.classList.add("changed");
		clearTimeout(this.fading);
		this.fading = setTimeout(() => marked.classList.remove("changed"), FRESH_MS);
	}
}

class FeedView {
	constructor(name) {
		this.kind = "feed";
		this.name = name;
		this.root = null;
		this.rev = null;
		$("feed-name").textContent = name;
		say($("feed-facts"), "");
		say($("feed-change"), "No change since you came");
		$("tree").replaceChildren();
		this.link = new Link(this);
	}

	path() {
		return `ws/${encodeURIComponent(this.name)}`;
	}

	frame(frame, text) {
		if (frame.type === "error") return say($("feed-change"), `The server says: ${frame.detail}`);
		if (frame.rev === undefined) return;
		showState("live", "Live");
		if (this.rev !== null) throughput.add();
		this.next = { frame, text };
		if (this.scheduled) return;
		this.scheduled = true;
		// Of states that come faster than they can be shown, the newest is enough.
		setTimeout(() => document.hidden ? this.paint() : requestAnimationFrame(() => this.paint()), this.pause ?? 0);
	}

	paint() {
		const start = performance.now();
		this.scheduled = false;
		if (view !== this) return;
		const { frame, text } = this.next;
		const data = /\d{16}|\d[.eE]/.test(text) ? exactly(text).data : frame.data;
		if (this.root) {
			const changes = new Changes();
			this.root.renew(data, changes, []);
			if (changes.total) say($("feed-change"), `Changed: ${visible(String(changes))}`);
		} else {
			this.root = new Twig(null, data, { left: OPEN_AT_FIRST });
			const list = make("ul");
			list.append(this.root.element);
			$("tree").replaceChildren(list);
		}
		this.rev = frame.rev;
		this.show();
		showNames();
		this.pause = Math.min(1000, (performance.now() - start) * 3);
	}

	facts(details) {
		this.subscribers = details?.subscribers;
		this.watch = details?.watch;
		this.show();
	}

	show() {
		const facts = this.rev === null ? [] : [`rev ${count(this.rev)}`];
		if (this.subscribers !== undefined) facts.push(many(this.subscribers, "subscriber"));
		if (this.watch) facts.push(this.watch.error ? `its source fails: ${this.watch.error}` : "watched");
		say($("feed-facts"), facts.join(" \u00b7 "));
	}

	lost() {}

	end() {
		this.link.drop();
		$("tree").replaceChildren();
	}
}
