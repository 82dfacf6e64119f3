// Which channel or feed is open, the token, keys and panels.

const FEED_NAME = /^[a-z0-9][a-z0-9_.-]{0,63}$/;

/** Why there can be no channel or feed of this name; empty if there can. */
function wrongName(kind, name) {
	if (!name) return "Type a name first.";
	if (kind === "feed") return FEED_NAME.test(name) ? "" : "A feed's name has 1 to 64 of a-z, 0-9, _ . and -, and begins with a letter or a digit.";
	if (name === "." || name === "..") return "A browser cannot ask for a channel of this name.";
	// The parts of a pair that stand alone have no UTF-8.
	if (/[\0-\x1f\x7f-\x9f]|[\ud800-\udfff]/u.test(name)) return "A channel's name has no control characters.";
	return [...name].length > 128 ? "A channel's name has at most 128 characters." : "";
}

function route() {
	const wanted = new URLSearchParams(location.hash.slice(1));
	const kind = wanted.has("channel") ? "channel" : wanted.has("feed") ? "feed" : null;
	const name = kind && wanted.get(kind);
	const wrong = kind ? wrongName(kind, name) : "";
	view?.end();
	view = null;
	say($("open-wrong"), wrong);
	const opened = kind && !wrong ? kind : "welcome";
	for (const id of ["welcome", "channel", "feed"]) $(id).hidden = id !== opened;
	say($("tabs").children[1], { welcome: "Start", channel: "Messages", feed: "State" }[opened]);
	document.title = opened === "welcome" ? "Threadcast" : `${visible(name)} \u2013 Threadcast`;
	if (opened === "welcome") {
		showPanel("lists");
	} else {
		view = opened === "channel" ? new ChannelView(name) : new FeedView(name);
		showPanel("stream");
	}
	showNames();
	poll();
}

function isTokenWanted() {
	return !$("token-form").hidden;
}

function askForToken() {
	if (isTokenWanted()) return;
	view?.link.drop();
	$("token-form").hidden = false;
	say($("token-wrong"), token ? "It did not accept the one it got." : "");
	showState("token", "Waiting for a token");
	$("token").focus();
}

function setToken(value) {
	token = remembered("sessionStorage", "threadcast.token", value);
	$("forget").hidden = !token;
}

$("token-form").onsubmit = (event) => {
	event.preventDefault();
	const value = $("token").value.trim();
	if (!/^[\x21-\x7e]+$/.test(value)) return say($("token-wrong"), "A token has visible ASCII characters only.");
	setToken(value);
	$("token").value = "";
	$("token-form").hidden = true;
	connectionsAt = 0;
	showState("connecting", "Connecting");
	view?.link.retry();
	poll();
};

$("forget").onclick = () => {
	setToken("");
	connectionsAt = 0;
	view?.link.connect();
	poll();
};

$("open").onsubmit = (event) => {
	event.preventDefault();
	const kind = event.submitter?.value ?? "channel";
	const name = $("find").value.trim();
	const wrong = wrongName(kind, name);
	say($("open-wrong"), wrong);
	if (wrong) return $("find").focus();
	$("find").value = "";
	history.pushState(null, "", `#${kind}=${encodeURIComponent(name)}`);
	route();
	$(kind === "channel" ? "content" : "tree").focus();
};

$("find").oninput = () => {
	say($("open-wrong"), "");
	showNames();
};

$("retry").onclick = () => view ? view.link.retry() : poll();

function showPanel(name) {
	document.body.dataset.panel = name;
	for (const tab of $("tabs").children) tab.setAttribute("aria-pressed", String(tab.dataset.show === name));
}

for (const tab of $("tabs").children) tab.onclick = () => showPanel(tab.dataset.show);

$("skip").onclick = () => {
	showPanel("stream");
	$(view instanceof ChannelView ? "scroller" : view instanceof FeedView ? "tree" : "curl-message").focus();
};

document.onkeydown = (event) => {
	const isTyping = /^(INPUT|TEXTAREA)$/.test(event.target.tagName);
	if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
		event.preventDefault();
		showPanel("lists");
		$("find").focus();
	} else if (event.key === "Escape" && event.target === $("find")) {
		$("find").value = "";
		$("find").oninput();
		if (view) showPanel("stream");
		$(view instanceof ChannelView ? "content" : "find").focus();
	} else if (event.key === "Escape" && view instanceof ChannelView && !log.following) {
		log.toNewest();
	}
};

// Whoever comes back to the page, or to a network, does not wait for the next try.
const comeBack = () => {
	if (document.hidden) return;
	if (view && $("state").dataset.phase === "waiting") view.link.retry();
	poll();
};
document.addEventListener("visibilitychange", comeBack);
addEventListener("online", comeBack);
addEventListener("hashchange", route);

const here = base.href.replace(/\/$/, "");
$("curl-message").textContent = `curl -X POST ${here}/api/messages \\\n  -H 'Content-Type: application/json' \\\n  -d '{"channel_id":"lab","author":"me","content":"hello"}'`;
$("curl-state").textContent = `curl -X PUT ${here}/api/state/board -d '{"temperature":21.5}'`;
setToken(token);
route();
