// What the last minute was like: frames received per second, and how long answers took.

const WIDTH = 240, HEIGHT = 56;

const throughput = {
	seconds: new Array(60).fill(0),
	now: 0,
	perSecond: 0,
	add() {
		this.now += 1;
	},
	tick(seconds) {
		this.perSecond = this.now / seconds;
		this.now = 0;
		this.seconds.push(this.perSecond);
		this.seconds.shift();
		const highest = Math.max(...this.seconds);
		const step = WIDTH / this.seconds.length;
		const bar = (value, at) => {
			const height = value / Math.max(highest, 1) * (HEIGHT - 2);
			return value ? `M${at * step} ${HEIGHT}v${-Math.max(height, 1)}h${step - 1}V${HEIGHT}z` : "";
		};
		$("rate-chart").firstElementChild.setAttribute("d", this.seconds.map(bar).join(""));
		$("rate").textContent = count(Math.round(this.perSecond));
		$("rate-peak").textContent = highest ? `highest ${count(Math.round(highest))}` : "";
	},
};

const latency = {
	samples: [],
	add(ms, kind) {
		this.samples.push(ms);
		if (this.samples.length > 60) this.samples.shift();
		$("latency").textContent = milliseconds(ms);
		$("latency-kind").textContent = kind;
		const highest = Math.max(...this.samples, 1);
		const step = WIDTH / 59;
		const points = this.samples.map((value, at) =>
			`${((60 - this.samples.length + at) * step).toFixed(1)} ${(HEIGHT - 2 - value / highest * (HEIGHT - 6)).toFixed(1)}`);
		$("latency-chart").firstElementChild.setAttribute("d", `M${points.join("L")}`);
	},
};

let ticked = performance.now();
setInterval(() => {
	const now = performance.now();
	throughput.tick((now - ticked) / 1000);
	ticked = now;
	if (view instanceof ChannelView && view.stale) view.show();
}, 1000);
