//! What connections cost when nothing happens, and what of it the pings are.

use serde_json::Value;

use crate::common::{PROGRAM, report, shown};

/// Intervals of the server's pings: so long that none is sent, its default, and often enough to tell what one costs.
const INTERVALS: [(&str, Option<f64>); 3] = [("1h", None), ("25s", Some(25.0)), ("5s", Some(5.0))];

pub(crate) fn run(connections: usize, seconds: f64) -> Result<(), String> {
    println!(
        "| {} idle WebSockets for {seconds} s | pings/s | CPU s per minute | CPU µs per connection and minute | \
         CPU µs per ping and pong | KiB per connection |",
        shown(Some(connections as f64), 0)
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let mut without = 0.0;
    for (interval, every) in INTERVALS {
        eprintln!("idle, a ping every {interval}");
        let flags = format!(
            "--subscribers {connections} --idle-seconds {seconds} -- --ping-interval {interval}"
        );
        let report = report(PROGRAM.as_ref(), &flags.split(' ').collect::<Vec<_>>())?;
        if let Some(fault) = report["fault"].as_str() {
            return Err(format!("idle, a ping every {interval}: {fault}"));
        }
        let number = |place: &str| report.pointer(place).and_then(Value::as_f64);
        let cpu = number("/server/cpu_seconds").ok_or("the server's CPU time is not known")?;
        let name = match every {
            None => {
                without = cpu;
                "without pings".to_owned()
            }
            Some(_) => format!("a ping every {interval}"),
        };
        let pings = every.map(|every| connections as f64 / every);
        let per_ping = pings.map(|pings| (cpu - without) * 1e6 / (pings * seconds));
        println!(
            "| {name} | {} | {:.3} | {} | {} | {} |",
            shown(pings, 0),
            cpu * 60.0 / seconds,
            shown(Some(cpu * 60e6 / seconds / connections as f64), 1),
            shown(per_ping, 1),
            shown(number("/server/kib_per_subscriber"), 1),
        );
    }
    println!();
    Ok(())
}
