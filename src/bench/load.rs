//! One run: connect, warm up, measure, let everything arrive, compare.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connect;
use super::latency::{Clock, Window, nanos};
use super::plan::{Channels, Load, Plan};
use super::publishers::Connected;
use super::received::Progress;
use super::report::{Cost, Report};
use super::server::{Server, Usage};
use super::subscribers::{Subscribers, Verdict, take_snapshots};
use super::{Args, Via, state};

/// The wait for deliveries ends when none came for so long, or after the second time in any case.
const QUIET: Duration = Duration::from_secs(3);
const DRAIN: Duration = Duration::from_secs(60);
/// Time for what should not come: duplicates of the last messages.
const AFTERWARDS: Duration = Duration::from_millis(100);

pub(super) fn run(args: &Args) -> Result<Report, String> {
    let publishers = if args.idle_seconds.is_some() {
        0
    } else {
        args.publishers
    };
    if publishers > 0 && args.via == Via::Ws && publishers < args.channels {
        return Err(format!(
            "a WebSocket publishes to one channel: {} channels need as many publishers, not {publishers}",
            args.channels
        ));
    }
    if args.load() != Load::Messages && args.content_bytes < state::LEAST_BYTES {
        return Err(format!(
            "--content-bytes {}: a state has at least {} bytes",
            args.content_bytes,
            state::LEAST_BYTES
        ));
    }
    connect::raise_descriptor_limit(args.subscribers + publishers)?;
    let clock = Clock::start();
    let server = Server::new(args)?;
    let usage = || server.pid.map(Usage::of).transpose();

    let mut plan = Plan {
        address: server.address,
        load: args.load(),
        channels: Channels {
            count: args.channels,
        },
        publishers,
        via: args.via,
        in_flight: args.in_flight,
        rate: args.rate,
        subscribers: args.subscribers,
        max_behind: args.max_behind,
        content_bytes: args.content_bytes,
        base_rev: 0,
        clock,
    };
    let before = usage()?;
    let connecting = clock.now();
    let mut sockets = connect::web_sockets(&plan)?;
    if plan.load != Load::Messages {
        plan.base_rev = take_snapshots(&mut sockets, &plan)?;
    }
    let connect_time = Duration::from_nanos(clock.now() - connecting);
    let connected = Connected::new(&plan)?;

    let start = clock.now() + nanos(args.warmup_seconds);
    let window = Window {
        start,
        end: start + nanos(args.idle_seconds.unwrap_or(args.seconds)),
    };
    let subscribers = Subscribers::start(sockets, &plan, window, args.receivers)?;
    let publishers = connected.start(&plan, window, &subscribers.progress)?;
    clock.sleep_until(window.start);
    let (from, own_from) = (usage()?, own_cpu()?);
    clock.sleep_until(window.end);
    let (to, own_to) = (usage()?, own_cpu()?);

    let published = publishers.finish()?;
    wait_for_deliveries(&subscribers.progress, clock);
    let drain_time = Duration::from_nanos(clock.now().saturating_sub(window.end));
    if plan.publishers > 0 {
        std::thread::sleep(AFTERWARDS);
    }
    let received = subscribers.leave()?;
    let cost = match (before, from, to) {
        (Some(before), Some(from), Some(to)) => Some(Cost {
            cpu: to.cpu - from.cpu,
            before,
            after: to,
        }),
        _ => None,
    };
    Ok(Report {
        plan,
        idle: args.idle_seconds.is_some(),
        measured: window,
        connect_time,
        drain_time,
        deliveries: received.in_window,
        latency: received.latency,
        malformed: received.malformed,
        first_malformed: received.first_malformed,
        verdict: Verdict::of(received.subscribers, &plan, &published),
        published,
        cost,
        own_cpu: own_to - own_from,
    })
}

fn wait_for_deliveries(progress: &Progress, clock: Clock) {
    let start = clock.now();
    let (mut last, mut last_change) = (0, start);
    loop {
        let (now, outstanding) = (clock.now(), progress.outstanding());
        if outstanding != last {
            (last, last_change) = (outstanding, now);
        }
        let open = progress.open.load(Ordering::Relaxed);
        let is_quiet = now - last_change > nanos(QUIET) || now - start > nanos(DRAIN);
        if outstanding == 0 || open == 0 || is_quiet {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn own_cpu() -> Result<Duration, String> {
    Usage::of(std::process::id() as i32).map(|usage| usage.cpu)
}
