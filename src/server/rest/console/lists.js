// What the server is asked every few seconds: channels, feeds, itself, and its connections if it tells.

const POLL_EVERY = 3000, ASK_AGAIN = 30000, MAX_NAMES = 200, MAX_CONNECTIONS = 100;

let channels = [], feeds = [];

function nameList(kind, items, name, renewCounts) {
	const wanted = $("find").value.trim().toLowerCase();
	const found = items.filter((item) => name(item).toLowerCase().includes(wanted));
	const create = (item) => {
		const element = make("li");
		const link = make("a");
		link.href = `#${kind}=${encodeURIComponent(name(item))}`;
		link.append(make("bdi", "", visible(name(item))), make("span"));
		link.title = name(item);
		element.append(link);
		return element;
	};
	reconcile($(`${kind}s`), found.slice(0, MAX_NAMES), name, create, (element, item) => {
		const link = element.firstChild;
		renewCounts(link.lastChild, item);
		if (view?.name === name(item) && view.kind === kind) link.setAttribute("aria-current", "page");
		else link.removeAttribute("aria-current");
	});
	$(`${kind}s-count`).textContent = items.length ? count(items.length) : "";
	const left = found.length - MAX_NAMES;
	const none = items.length ? "None has this in its name." : "None yet.";
	say($(`${kind}s-note`), left > 0 ? `And ${count(left)} more: type to find one.` : found.length ? "" : none);
}

function showNames() {
	nameList("channel", channels, (item) => item.channel_id, (element, item) => {
		const own = view instanceof ChannelView && view.name === item.channel_id && view.messages !== null;
		say(element, channelCounts(own ? view : item));
		element.title = "Messages \u00b7 subscribers";
	});
	nameList("feed", feeds, (item) => item.feed, (element, item) => {
		const fails = Boolean(item.watch?.error);
		const own = view instanceof FeedView && view.name === item.feed && view.rev !== null;
		say(element, `${fails ? "fails \u00b7 " : ""}${count(own ? view.rev : item.rev)} \u00b7 ${count(item.subscribers)}`);
		element.classList.toggle("failing", fails);
		element.title = fails ? item.watch.error : "Revision \u00b7 subscribers";
	});
}

function showHealth(health) {
	$("version").textContent = health.version ?? "";
	const facts = [["Up for", duration(health.uptime_seconds)],
		["Subscribers", count(health.connections)], ["Newest id", `#${health.head}`]];
	$("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
}

function topicOf({ channel, feed }) {
	return channel !== null && channel !== undefined ? channel : feed !== null && feed !== undefined ? `feed ${feed}` : "\u2013";
}

function showConnections(list) {
	$("connections-section").hidden = false;
	$("connections-count").textContent = count(list.length);
	// Those with most to catch up first: they are what somebody looks for here.
	list.sort((a, b) => b.lag - a.lag || a.id - b.id);
	const create = ({ id }) => {
		const item = make("li");
		const end = make("button", "", "Disconnect");
		end.type = "button";
		end.onclick = () => disconnect(id, end);
		item.append(make("bdi"), make("p"), end);
		return item;
	};
	reconcile($("connections"), list.slice(0, MAX_CONNECTIONS), (item) => item.id, create, (element, item) => {
		const [topic, facts, end] = element.children;
		say(topic, visible(topicOf(item)));
		const lag = item.behind ? `behind by ${count(item.lag)}` : item.lag ? `lag ${count(item.lag)}` : "no lag";
		const words = [item.kind, item.address, item.token ? `token ${item.token}` : "", lag, item.queued_bytes ? `${bytes(item.queued_bytes)} queued` : ""];
		say(facts, visible(words.filter(Boolean).join(" \u00b7 ")));
		facts.classList.toggle("behind", item.behind);
		end.setAttribute("aria-label", `Disconnect ${item.address} from ${topicOf(item)}`);
	});
	const left = list.length - MAX_CONNECTIONS;
	if (left > 0) say($("connections-note"), `And ${count(left)} more with less lag.`);
}

async function disconnect(id, button) {
	if (!button.dataset.sure) {
		button.dataset.sure = "asked";
		button.textContent = "Really?";
		setTimeout(() => {
			delete button.dataset.sure;
			button.textContent = "Disconnect";
		}, 3000);
		return;
	}
	try {
		await call(`api/connections/${id}`, { method: "DELETE" });
		say($("connections-note"), "Disconnected.");
	} catch (error) {
		say($("connections-note"), `Not disconnected: ${error.message}`);
	}
	poll();
}

let connectionsAt = 0;

async function pollConnections() {
	if (performance.now() < connectionsAt) return;
	try {
		const { connections } = await call("api/connections");
		showConnections(connections);
	} catch (error) {
		// A server that has no such route, or not for us.
		if (error instanceof Refused && [401, 403, 404, 405].includes(error.status)) {
			$("connections-section").hidden = true;
			connectionsAt = performance.now() + ASK_AGAIN;
		}
	}
}

let polling = 0, pollTimer = 0;

async function poll() {
	clearTimeout(pollTimer);
	const turn = polling += 1, start = performance.now();
	if (!document.hidden && !isTokenWanted()) {
		try {
			const [named, states, health] = await Promise.all([call("api/channels"), call("api/state"), call("api/health")]);
			if (turn !== polling) return;
			channels = named.details;
			feeds = states.feeds;
			if (view instanceof ChannelView) view.facts(channels.find((item) => item.channel_id === view.name));
			if (view instanceof FeedView) view.facts(feeds.find((item) => item.feed === view.name));
			showNames();
			showHealth(health);
			await pollConnections();
			if (!view) showState("live", "Connected");
		} catch (error) {
			if (!view && !isTokenWanted()) showState("waiting", error instanceof Refused ? `Refused: ${error.message}` : "The server cannot be reached, trying again");
		}
	}
	// A server with many channels is not kept busy with telling them.
	if (turn === polling) pollTimer = setTimeout(poll, Math.max(POLL_EVERY, (performance.now() - start) * 5));
}
