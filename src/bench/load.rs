//! One run: connect, warm up, measure, let everything arrive, compare.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connect;
use super::latency::{Clock, Window, nanos};
use super::plan::{Channels, Load, Plan};
use super::publishers::{Connected, fill};
use super::received::Progress;
use super::report::{Cost, Report};
use super::server::{Server, Usage};
use super::soundings::Soundings;
use super::subscribers::{Subscribers, Verdict, take_snapshots};
use super::{Args, Via, state};

/// The wait for deliveries ends when none came for so long, or after the second time in any case.
const QUIET: Duration = Duration::from_secs(10);
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
        publisher_threads: args.publisher_threads,
        via: args.via,
        in_flight: args.in_flight,
        rate: args.rate,
        messages: None,
        subscribers: args.subscribers,
        stalled: args.stalled,
        churn: args.churn.map(|rate| rate / args.receivers as f64),
        since_back: args.since_back,
        max_behind: args.max_behind,
        content_bytes: args.content_bytes,
        base: 0,
        clock,
    };
    let mut earlier = None;
    if let Some(messages) = args.since_back {
        // One that nobody is to get again.
        plan.base = fill(&plan, 1)?.last_id;
        earlier = Some(fill(&plan, messages)?);
    }
    let before = usage()?;
    let connecting = clock.now();
    let mut sockets = match plan.since_back {
        Some(_) => Vec::new(),
        None => connect::web_sockets(&plan)?,
    };
    if plan.load != Load::Messages {
        plan.base = take_snapshots(&mut sockets, &plan)?;
    }
    let connect_time = Duration::from_nanos(clock.now() - connecting);
    let connected = Connected::new(&plan)?;

    let start = clock.now() + nanos(args.warmup_seconds);
    let window = Window {
        start,
        end: start + nanos(args.idle_seconds.unwrap_or(args.seconds)),
    };
    let progress = Arc::new(Progress::default());
    let subscribers = || {
        Subscribers::start(
            sockets,
            &plan,
            window,
            args.receivers,
            Arc::clone(&progress),
        )
    };
    let (publishers, subscribers) = if plan.since_back.is_some() {
        let publishers = connected.start(&plan, window, &progress)?;
        clock.sleep_until(window.start);
        (publishers, subscribers()?)
    } else {
        let subscribers = subscribers()?;
        (connected.start(&plan, window, &progress)?, subscribers)
    };
    clock.sleep_until(window.start);
    let own_from = own_cpu()?;
    let all_live = || {
        let back = progress.came_back.load(Ordering::Relaxed);
        let open = progress.open.load(Ordering::Relaxed);
        let late = clock.now() > window.end + nanos(DRAIN);
        plan.since_back.is_none() || back >= open as u64 || late
    };
    let mut soundings = Soundings::take(&server, window, clock, all_live)?;
    let (to, own_to) = (soundings.last(), own_cpu()?);

    let mut published = publishers.finish()?;
    if let Some(earlier) = earlier {
        published.add_earlier(earlier);
    }
    wait_for_deliveries(&progress, clock);
    let drain_time = Duration::from_nanos(clock.now().saturating_sub(window.end));
    if plan.publishers > 0 {
        std::thread::sleep(AFTERWARDS);
    }
    if plan.churn.is_some() {
        // As many connections as at the beginning, to see whether they cost as much.
        let _publishers = Connected::new(&plan)?;
        soundings.settle(&server, clock)?;
    } else {
        soundings.look(&server, clock)?;
    }
    let received = subscribers.leave()?;
    let cost = match (before, soundings.first(), to) {
        (Some(before), Some(from), Some(to)) => Some(Cost {
            cpu: to.cpu - from.cpu,
            before,
            start: from,
            after: to,
            soundings,
        }),
        _ => None,
    };
    let last_back = progress.last_back.load(Ordering::Relaxed);
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
        gone: received.gone,
        live_time: plan
            .since_back
            .map(|_| Duration::from_nanos(last_back.saturating_sub(window.start))),
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
